"""The published contrast system from scans to the report, in tiny and SYNTHETIC, and where it must stop."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fmct.cli import main
from fmct.contrast.paper_cache import PreparedScans
from fmct.contrast.paper_registration import read_template
from fmct.data.slice_batches import SliceScans
from fmct.downstream.contrast_paper_inputs import legacy_network
from fmct.downstream.contrast_paper_report import PUBLISHED, Scored, measured, published_rows, table_text
from fmct.errors import ConfigError
from fmct.inference.predictions import read_predictions
from fmct.models.slice_networks import SliceNetworkConfig
from fmct.publish.load_model import load_model
from fmct.store.ingest import IngestConfig, ingest
from fmct.store.reader import Store
from fmct.table_files import read_rows
from fmct.tasks.contrast_paper import scan_probability
from tests.contrast.faulty_series import FAILED, LEFT_OUT, write_faulty
from tests.contrast.paper_phantoms import PROFILE, SHAPE, SPACING, WORDS, chest, neck, save, settings

HEADNECK, CHEST = "configs/finetune/contrast_paper.yaml", "configs/finetune/contrast_paper_chest.yaml"
PATIENTS = 12


@dataclass(frozen=True)
class Cohort:
    """Scans, their store and labels, a run on them and its model. words: of any run on this cohort."""

    root: Path
    words: list[str]

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def model(self) -> Path:
        return self.root / "model"


def finetune(config: str, words: list[str], output: Path, *more: str) -> int:
    return main(["finetune", config, *words, *more, f"output={output}"])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Return twelve necks (half enhanced; 6 train, 4 validate, 2 test) and a chest among the test scans, and a run."""
    root = tmp_path_factory.mktemp("contrast-paper")
    rows = ["patient,contrast,split"]
    for number in range(PATIENTS):
        enhanced = number % 2
        shift = (0.0, 2.0 * (number % 5 - 2), 2.0 * (number % 3 - 1))
        save(neck(number, vessel_hu=250 if enhanced else 40, shift_mm=shift), root / "scans" / f"p{number:02d}.nii.gz")
        split = "train" if number < 6 else "validation" if number < 10 else "test"
        rows.append(f"p{number:02d},{enhanced},{split}")
    save(chest(50), root / "scans" / "p90.nii.gz")
    (root / "labels.csv").write_text("\n".join([*rows, "p90,0,test"]) + "\n")
    ingest([str(root / "scans")], root / "store", config=IngestConfig(workers=1))
    template = save(neck(99), root / "template.nii.gz")
    words = [
        *WORDS, f"input.template={template}", f"data.store={root / 'store'}", f"data.labels={root / 'labels.csv'}",
        "network={name: simple_cnn, filters: [4, 8]}", "learning_rate.peak=0.002", "batch_size=8", "epochs=6",
        f"cache={root / 'cache'}", "run.progress_s=1e9",
    ]  # fmt: skip
    made = Cohort(root, words)
    assert finetune(HEADNECK, words, made.run) == 0
    assert main(["export", str(made.run), str(made.model)]) == 0
    return made


def predicted(model: Path, source: Path, out: Path) -> dict[str, dict[str, str]]:
    """Return {patient: row} of predictions.csv, whatever failed."""
    assert main(["predict", str(model), str(source), str(out), "--device", "cpu", "--precision", "fp32"]) in (0, 1)
    return {row["patient"]: row for row in read_rows(out / "predictions.csv")}


@pytest.fixture(scope="module")
def rows(cohort: Cohort) -> dict[str, dict[str, str]]:
    """Return {patient: row} of the model's predictions for the folder of scans."""
    return predicted(cohort.model, cohort.root / "scans", cohort.root / "out")


def test_from_scans_to_a_report(cohort: Cohort, rows: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """Acceptance 1, 14: a scan is the mean of its slices, more than ½ is contrast, a chest is flagged."""
    out = cohort.root / "out"
    assert len(rows) == PATIENTS + 1
    slices: dict[str, list[float]] = {}
    for row in read_rows(out / "slices.csv"):
        slices.setdefault(row["patient"], []).append(float(row["probability"]))
    for patient, row in rows.items():
        if patient == "p90":
            assert row["probability"] == row["decision"] == ""
            assert row["error"].startswith("wrong-body-part: ")
            continue
        p = float(row["probability"])
        assert len(slices[patient]) == PROFILE.slices
        assert p == pytest.approx(np.mean(slices[patient]), abs=1e-9)
        assert row["decision"] == str(int(p > 0.5)) == str(int(patient[1:]) % 2)
    words = [str(out), str(cohort.root / "labels.csv"), str(tmp_path / "report"), "--resamples", "100"]
    assert main(["evaluate", *words]) == 0
    assert (tmp_path / "report" / "report.html").is_file()
    table = json.loads((cohort.run / "table.json").read_text())
    ours, _, internal, external = table["rows"]
    assert (ours["scans"], ours["slices"]) == (4, 4 * PROFILE.slices)
    assert (internal["slices"], external["slices"]) == (216 * 66, 595 * 66)
    assert "Left out: 1 wrong-body-part" in table["notes"][0]
    assert [row["code"] for row in csv.DictReader((cohort.run / "left_out.csv").read_text().splitlines())] == [
        "wrong-body-part"
    ]
    assert load_model(cohort.model, device="cpu").selftest().worst == 0


def test_a_scan_alone_is_as_among_others(cohort: Cohort, rows: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """Acceptance 6: bit-equal, from a file or a store, in the run's own table and in prediction."""
    (tmp_path / "one").mkdir()
    shutil.copy(cohort.root / "scans" / "p11.nii.gz", tmp_path / "one" / "p11.nii.gz")
    alone = predicted(cohort.model, tmp_path / "one", tmp_path / "alone")["p11"]
    assert alone["probability"] == rows["p11"]["probability"]
    assert main(["predict", str(cohort.model), str(cohort.root / "store"), str(tmp_path / "store"),
                 "--device", "cpu", "--precision", "fp32"]) == 1  # fmt: skip
    stored = {p.series: p.probability for p in read_predictions(tmp_path / "store" / "predictions.csv")}
    own = [p for p in read_predictions(cohort.run / "predictions.csv") if not p.failed]
    assert float(alone["probability"]) in stored.values()
    for row in own:
        assert stored[row.series] == pytest.approx(row.probability, abs=1e-12)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(cohort: Cohort, tmp_path: Path) -> None:
    """Acceptance 17: also dropout, the order of slices and the best weights."""
    words = [*cohort.words, "epochs=3", "run.save_every=8"]
    finetune(HEADNECK, words, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    checkpoints = sorted((tmp_path / "resumed" / "checkpoints").iterdir())
    assert len(checkpoints) > 1
    for path in checkpoints[1:]:  # what a kill after the first checkpoint would have left
        shutil.rmtree(path)
    finetune(HEADNECK, words, tmp_path / "resumed")
    for name in ("predictions.csv", "slices.csv", "table.json", "metrics.jsonl", "decision.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_early_stopping_ends_a_run_and_the_best_weights_stay(cohort: Cohort, tmp_path: Path) -> None:
    words = [*cohort.words, "learning_rate.peak=0.5", "epochs=30", "patience=2", "variation=null"]
    assert finetune(HEADNECK, words, tmp_path / "run") == 0
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    losses = [loss for _, loss in table["loss"]]
    assert len(losses) < 30
    assert len(losses) == int(np.argmin(losses)) + 1 + 2
    assert "is the lowest" in table["notes"][-1]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert finetune(HEADNECK, words, tmp_path / "run") == 0  # nothing more is trained
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == len(steps) == steps[-1]


@pytest.mark.parametrize("optimizer", [False, True])
def test_the_chest_goes_on_from_the_head_and_neck(cohort: Cohort, tmp_path: Path, optimizer: bool) -> None:
    source = cohort.run if optimizer else cohort.model
    words = [*cohort.words, f"start={source}", f"start_optimizer={str(optimizer).lower()}", "learning_rate.peak=0",
             "epochs=1", "freeze=1", "data.on_overlap=report"]  # fmt: skip
    assert finetune(CHEST, words, tmp_path / "chest") == 0
    first = {p.series: p.probability for p in read_predictions(cohort.run / "predictions.csv") if not p.failed}
    now = {p.series: p.probability for p in read_predictions(tmp_path / "chest" / "predictions.csv") if not p.failed}
    assert now.keys() == first.keys()
    assert np.mean([abs(now[name] - first[name]) for name in now]) < 0.2  # only running means moved: the rate is 0
    events = (tmp_path / "chest" / "events.jsonl").read_text()
    assert "matched, 0 missing, 0 unexpected" in events
    assert ("Adam's moments after" in events) == optimizer
    assert main(["export", str(tmp_path / "chest"), str(tmp_path / "model")]) == 0


def test_what_cannot_be_trained_is_refused(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Acceptance 11, 12: labels by id, a patient in one split; one class alone, another network or template."""
    labels = (cohort.root / "labels.csv").read_text()

    def refused(*more: str, config: str = HEADNECK) -> str:
        assert finetune(config, cohort.words, tmp_path / "run", *more, "--fresh") == 2
        return capsys.readouterr().err

    def table(name: str, text: str) -> str:
        (tmp_path / f"{name}.csv").write_text(text)
        return f"data.labels={tmp_path / name}.csv"

    with_series = "patient,series,contrast\n" + "".join(f"p{n:02d},p{n:02d}.nii.gz,{n % 2}\n" for n in range(PATIENTS))
    assert "elsewhere.nii.gz" in refused(table("unknown", with_series.replace("p03.nii", "elsewhere.nii")))
    assert "line 15" in refused(table("twice", labels + "p03,1,train\n"))
    assert "p03 is in two splits" in refused(table("two", labels.replace("p03,1,train", "p03,1,train\np03,0,test")))
    one = [line for line in labels.splitlines() if not (line.endswith("validation") and ",1," in line)]
    assert "both are needed" in refused(table("one-class", "\n".join(one)))
    assert "its network differs in filters" in refused("network.filters=[4]", f"start={cohort.run}", config=CHEST)
    moved = labels.replace("train", "x").replace("test", "train").replace("x", "test").replace("p10,0", "p10,1")
    assert "was pretrained on 6 of the 6 patients" in refused(
        f"start={cohort.run}", table("moved", moved), config=CHEST
    )
    assert "template_sha256 says" in refused("input.template_sha256=" + "0" * 64)
    assert "one label of a table" in refused("data.targets=[a, b]")


def test_bad_input_has_a_status_and_no_probability(cohort: Cohort, tmp_path: Path) -> None:
    """Acceptance 13: each defined; what only DICOM can be wrong in too."""
    scans = tmp_path / "scans"
    save(neck(1), scans / "good.nii.gz")
    save(neck(1, shape=(18, 40, 40), spacing=(0.5, 2.0, 2.0)), scans / "short.nii.gz")
    save(neck(1, shape=(2, 40, 40)), scans / "two.nii.gz")
    save(neck(1, shape=(20, 20, 40), spacing=(2.0, 5.0, 2.0)), scans / "coronal.nii.gz")
    constant = np.full(SHAPE, 40, np.int16).transpose()
    nibabel.Nifti1Image(constant, np.diag([2.0, 2, 3, 1])).to_filename(scans / "constant.nii.gz")
    broken = neck(2).voxels.transpose().astype(np.float32)
    broken[3, 3, 3] = np.nan
    nibabel.Nifti1Image(broken, np.diag([2.0, 2, 3, 1])).to_filename(scans / "nan.nii.gz")
    write_faulty(scans, neck(3).voxels, pixel_mm=2.0, step_mm=3.0)
    out = tmp_path / "out"
    assert main(["predict", str(cohort.model), str(scans), str(out), "--device", "cpu"]) == 1
    rows = read_rows(out / "predictions.csv")
    good = [row for row in rows if row["probability"]]
    assert sorted(row["patient"] for row in good) == ["good", "sound"]
    errors = {row["patient"]: row["error"].split(":")[0] for row in rows if not row["probability"]}
    assert errors["short"] == "too-short"
    assert errors["coronal"] == "non-axial"
    assert errors["nan"] == "non-finite-values"
    assert errors["two"] == "too-few-slices"
    assert errors["constant"]
    assert set(errors.values()) >= FAILED
    assert not LEFT_OUT & {row["patient"] for row in rows}
    assert all(row["decision"] == "" for row in rows if not row["probability"])


def test_prepared_scans_are_made_once(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keyed by content, template and settings: another setting is another folder, never an old answer."""
    template = read_template(cohort.root / "template.nii.gz", SPACING)
    cache = PreparedScans(cohort.root / "cache", template, settings())
    with Store.open(cohort.root / "store") as store:
        monkeypatch.setattr("fmct.contrast.paper_cache.prepare", lambda *_: pytest.fail("prepared again"))
        cache.make(store, store.entries)
        kept = [found for _, found in cache.all(store.entries)]
    assert sum(hasattr(found, "slices") for found in kept) == PATIENTS
    assert PreparedScans(cohort.root, template, settings(scan_range=True)).folder.name != cache.folder.name


def test_legacy_switches_are_named_wherever_the_run_reports(cohort: Cohort, tmp_path: Path) -> None:
    words = ["legacy.last_epoch=true", "epochs=1"]
    assert finetune(HEADNECK, cohort.words, tmp_path / "run", *words) == 0
    said = "LEGACY: published defects are switched on: last_epoch."
    assert said in (tmp_path / "run" / "table.md").read_text()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    assert said in (tmp_path / "model" / "README.md").read_text()


def test_the_legacy_input_scale_is_efficientnets() -> None:
    """Acceptance 18: the switch sets 1/255 where Keras' network had it, and nowhere else."""
    on = settings(input_scale=True).legacy
    assert legacy_network(SliceNetworkConfig("efficientnet_b4"), on).input_scale == pytest.approx(1 / 255)
    assert legacy_network(SliceNetworkConfig("simple_cnn"), settings().legacy).input_scale == 1
    with pytest.raises(ConfigError, match="EfficientNet"):
        legacy_network(SliceNetworkConfig("simple_cnn"), on)


def scored(patients: int, *, seed: int = 0, positive: float = 0.5) -> Scored:
    """Return a made-up split, five slices a scan that are alike within the scan."""
    random = np.random.default_rng(seed)
    labels = (np.arange(patients) < positive * patients).astype(float)
    middle = labels + random.normal(0, 1.0, patients)
    slices = [1 / (1 + np.exp(-(m + random.normal(0, 0.05, 5)))) for m in middle]
    scans = SliceScans([], [], labels, [f"p{n}/s{n}" for n in range(patients)])
    return Scored("test", scans, slices, np.array([scan_probability(p, "mean") for p in slices]))


def test_intervals_are_over_patients() -> None:
    """Acceptance 15: as wide for slices as for scans, with ten times the resamples too; one class: n/a."""
    few, many = (measured(scored(60), 0.5, resamples=count) for count in (200, 2000))
    width = [row.values[0].high - row.values[0].low for row in (few, many)]  # type: ignore[union-attr]
    assert width[1] == pytest.approx(width[0], rel=0.25)
    scan = many.values[2].high - many.values[2].low  # type: ignore[union-attr]
    assert width[1] == pytest.approx(scan, rel=0.2)
    assert (many.scans, many.slices) == (60, 300)
    alone = measured(scored(20, positive=1.0), 0.5)
    assert "n/a" in str(alone.values[0])
    assert "one class" in alone.values[2].note  # type: ignore[union-attr]


def test_published_counts_are_derived() -> None:
    """The reference's rule: slices are scans × slices a scan; the printed 33 264 of the internal set is not copied."""
    rows = published_rows("headneck", "efficientnet_b4") + published_rows("chest", "efficientnet_b4")
    assert [row.slices for row in rows] == [14_256, 39_270, 3_710, 28_140]
    assert "33264" not in table_text(rows)
    for source in PUBLISHED.values():
        names = set(source) - {"scans", "slices"}
        assert names == {"simple_cnn", "resnet101v2", "imagenet", "inception_v3", "efficientnet_b4"}
    assert published_rows("", "simple_cnn") == []

"""Fine-tuning end to end on tiny SYNTHETIC pairs: resume to the bit, validation, export, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fmct import cli
from fmct.artefacts import read_json
from fmct.data.cohort import read_cohort
from fmct.downstream.config import FineTuning, ShotsConfig, rates_of
from fmct.downstream.run import cohort_rows, prepare
from fmct.errors import ConfigError, DataError
from fmct.inference.predictions import read_predictions
from fmct.models.encoder import EncoderConfig, build_encoder
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish.decision import read_decision
from fmct.publish.export_model import export_model
from fmct.publish.facts import corpus_facts
from fmct.publish.folder import write_encoder
from fmct.publish.load import load_encoder
from fmct.publish.load_model import load_model
from fmct.publish.task_record import read_task
from fmct.table_files import read_rows
from fmct.train import checkpoint
from fmct.train.session import Options
from fmct.windows import Window
from tests.downstream.cohorts import CPU, DUAL, SCRATCH, Corpus, corpus, recipe

ENCODER = EncoderConfig(size="tiny", embed_dim=24, depth=2, num_heads=2, patch_size=[4, 4, 4])
SEGMENTER = ["network={taps: 2, width: 16, stem_channels: 8}"]


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def run(patients: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(patients, tmp_path_factory.mktemp("runs") / "run")


def trained(patients: Corpus, output: Path, *overrides: str) -> Path:
    module, config = recipe("nct_pe", *SCRATCH, *DUAL, *patients.data, f"output={output}", *overrides)
    assert module.main(config, Options(), CPU) == 0
    return output


def encoder_folder(folder: Path, patients: Corpus, *, seen: str = "train", voxels: float = 9.0) -> Path:
    """Write an encoder folder whose card says that it was pretrained on the series of a split."""
    cohort = read_cohort(recipe("segment", *SCRATCH, *patients.data, "output=unused")[1].data)
    preprocessing = Preprocessing(
        (Window(-1000, 400), Window(-20, 120)), InputSpec(size_voxels=(16, 16, 16), spacing_mm=(voxels, voxels, voxels))
    )
    torch.manual_seed(3)
    weights = {name: 0.1 * torch.randn_like(value) for name, value in build_encoder(ENCODER, 2).state_dict().items()}
    facts = {"run": "ab" * 32, "corpus": corpus_facts([sample.entry for sample in cohort.of(seen)])}
    return write_encoder(folder, weights, ENCODER, preprocessing, facts=facts)


def parameters(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    return checkpoint.read(newest).parameters


def test_a_run_folder_says_everything(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("segmentation_nct", "classification_nct", "segmentation_ctpa", "alignment", "discrepancy", "bag_nct"):
        assert f"loss/{name}" in lines[0]
        assert f"count/{name}" in lines[0]
    assert {"ramp", "alignment_spread_nct", "alignment_spread_ctpa"} <= set(lines[-1])
    record = read_task(run)
    assert record.kind == "nct_pe"
    assert record.targets == ("pe",)
    assert record.preprocessing.input.size_voxels == (16, 16, 16)
    rows = read_rows(run / "cohort.csv")
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert sum(row["split"] == "test" for row in rows) == 2
    assert {row["pe"] for row in rows} == {"0", "1"}


def test_resume_is_bit_for_bit_with_another_number_of_workers(patients: Corpus, run: Path, tmp_path: Path) -> None:
    parts = trained(patients, tmp_path / "parts", "workers=1")
    (parts / "checkpoints" / "step-000004" / "state.json").write_text("broken")
    trained(patients, parts)
    assert (parts / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    left, right = parameters(run), parameters(parts)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_validation_chooses_on_its_own_split_and_freezes(run: Path) -> None:
    """M9 in the run: the threshold is one of the validation patients' scores, and only they are in the table."""
    rows = read_predictions(run / "validation" / "step-000004" / "predictions.csv")
    cohort = {row["series"]: row for row in read_rows(run / "cohort.csv")}
    assert {cohort[row.series]["split"] for row in rows} == {"validation"}
    decision = read_decision(run)
    assert decision is not None
    facts = decision.validation["pe"]
    assert facts["positives"] == 1
    assert facts["negatives"] == 1
    scores = [row.probability for row in rows]
    assert any(math.isclose(decision.thresholds["pe"], score, rel_tol=1e-12) for score in scores)
    assert all((row.probability >= decision.thresholds["pe"]) == bool(row.decision) for row in rows)
    assert decision.validation["series_with_lesion"] == 1


def test_the_exported_model_predicts_the_validation_numbers(patients: Corpus, run: Path, tmp_path: Path) -> None:
    """N2, N7: no CTPA parameter in the folder, the threshold inside it; `fmct predict` gives what validation saw."""
    model = load_model(export_model(run, tmp_path / "model"), device="cpu")
    model.selftest()
    assert not [name for name in model.module.state_dict() if "ctpa" in name]
    assert model.decision == read_decision(run)
    out = tmp_path / "predictions"
    command = ["predict", str(tmp_path / "model"), str(patients.store), str(out), "--no-masks", "--device", "cpu"]
    assert cli.main([*command, "--only", str(run / "cohort.csv"), "--split", "validation"]) == 0
    seen = {row.series: row for row in read_predictions(run / "validation" / "step-000004" / "predictions.csv")}
    found = {row.series: row for row in read_predictions(out / "predictions.csv")}
    assert found.keys() == seen.keys()
    for series, row in found.items():
        assert row.probability == pytest.approx(seen[series].probability, rel=1e-6)
        assert row.decision == seen[series].decision


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_a_mode_trains_what_it_says(patients: Corpus, tmp_path: Path, mode: str) -> None:
    encoder = encoder_folder(tmp_path / "encoder", patients)
    module, config = recipe(
        "segment", *SEGMENTER, *patients.data, f"encoder={encoder}", f"mode={mode}", f"output={tmp_path / 'run'}",
        "steps=2",
    )  # fmt: skip
    assert module.main(config, Options(), CPU) == 0
    before = load_encoder(encoder, device="cpu").model.state_dict()
    after = parameters(tmp_path / "run")
    same = all(torch.equal(after[f"network.encoder.{name}"], value) for name, value in before.items())
    assert same == (mode != "full")
    assert any("lora" in name for name in after) == (mode == "lora")
    assert rates_of(config).encoder_multiplier == 0.1
    record = read_task(tmp_path / "run")
    assert record.pretrained["overlap"] == []
    assert len(record.pretrained["fingerprint"]) == 64
    model = load_model(export_model(tmp_path / "run", tmp_path / "model"), device="cpu")
    assert not [name for name in model.module.state_dict() if "lora" in name]


def test_from_scratch_is_one_flag_away(patients: Corpus, tmp_path: Path) -> None:
    """Same network, data, updates; other weights; no layer is slowed; nothing of the encoder is claimed."""
    encoder = encoder_folder(tmp_path / "encoder", patients, seen="test")
    common = [*SEGMENTER, *patients.data, f"encoder={encoder}", f"output={tmp_path / 'run'}"]
    pretrained = recipe("segment", *common, "allow_overlap=true")[1]
    scratch = recipe("segment", *common, "from_scratch=true")[1]
    with_weights, without = prepare(pretrained).start, prepare(scratch).start
    assert with_weights.encoder is not None
    assert without.encoder is not None
    assert without.preprocessing == with_weights.preprocessing
    assert without.pretrained == {}
    left, right = with_weights.encoder.state_dict(), without.encoder.state_dict()
    assert left.keys() == right.keys()
    assert not torch.equal(left["blocks.0.attn.qkv.weight"], right["blocks.0.attn.qkv.weight"])
    assert (right["blocks.0.ls1.gamma"] == 1).all()
    rates = rates_of(scratch)
    assert rates.layer_decay == rates.encoder_multiplier == 1.0
    again = prepare(scratch).start.encoder
    assert again is not None
    assert all(torch.equal(value, right[name]) for name, value in again.state_dict().items())


def test_an_encoder_that_saw_the_test_split_is_refused_or_named(patients: Corpus, tmp_path: Path) -> None:
    encoder = encoder_folder(tmp_path / "encoder", patients, seen="test")
    common = [*SEGMENTER, *patients.data, f"encoder={encoder}", f"output={tmp_path / 'run'}"]
    with pytest.raises(DataError, match="pretrained on 2 of the 2 patients of the split test"):
        prepare(recipe("segment", *common)[1])
    start = prepare(recipe("segment", *common, "allow_overlap=true")[1]).start
    (note,) = start.pretrained["overlap"]
    assert note.startswith("TRANSDUCTIVE: the encoder was pretrained on 2 of 2 patients of test")
    assert note in start.report


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["windows.spacing_mm=[2,2,2]"], "trained at"),
        (["input={windows: [{low: 0, high: 1}], spacing_mm: [9,9,9]}"], "leave `architecture` and `input` out"),
        (["mode=half"], "frozen, lora, full"),
        (["mode=frozen", "from_scratch=true"], "has none that was pretrained"),
        (["shots.patients=99"], "99"),
    ],
)
def test_what_contradicts_the_encoder_is_refused(
    patients: Corpus, tmp_path: Path, overrides: list[str], message: str
) -> None:
    encoder = encoder_folder(tmp_path / "encoder", patients)
    common = [*SEGMENTER, *patients.data, f"encoder={encoder}", f"output={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=message):
        prepare(recipe("segment", *common, *overrides)[1])


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("nct_pe", [], "says nothing of its network|says how a series becomes input"),
        ("nct_pe", ["data.targets=[pe,other]"], "one finding"),
        ("nct_pe", [*SCRATCH, *DUAL, "data.pairs="], "no training series has one"),
        ("nct_pe", [*SCRATCH, *DUAL, "input.spacing_mm=[0.5,0.5,0.5]"], "allow_small_cells=true"),
        ("segment", [*SCRATCH, "data.masks="], "segmentation learns from masks"),
        ("classify", [*SCRATCH, "objective.positive_weight=[1,2]"], "one for each"),
        ("classify", [*SCRATCH, "unet={}"], "classification reads a transformer"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(
    patients: Corpus, tmp_path: Path, config: str, overrides: list[str], message: str
) -> None:
    module, built = recipe(config, *patients.data, f"output={tmp_path / 'run'}", *overrides)
    with pytest.raises((ConfigError, DataError), match=message):
        module.main(built, Options(), CPU)
    assert not (tmp_path / "run").exists()


def test_few_shot_draws_are_nested_and_seeded(patients: Corpus, tmp_path: Path) -> None:
    config: FineTuning = recipe("segment", *SCRATCH, *SEGMENTER, *patients.data, f"output={tmp_path}")[1]

    def drawn(count: int, seed: int, balanced: bool = False) -> list[str]:
        shots = ShotsConfig(patients=count, seed=seed, balanced=balanced)
        return prepare(replace(config, shots=shots)).cohort.patients("train")

    assert set(drawn(2, 0)) < set(drawn(3, 0)) < set(drawn(4, 0))
    assert len({tuple(drawn(2, seed)) for seed in range(6)}) > 1
    labels = {row["patient"]: row["pe"] for row in _cohort_table(config)}
    assert sorted(labels[patient] for patient in drawn(1, 4, balanced=True)) == ["0", "1"]
    assert len(prepare(replace(config, shots=ShotsConfig(1))).cohort.patients("test")) == 2


def _cohort_table(config: FineTuning) -> list[dict[str, Any]]:
    cohort = read_cohort(config.data)
    return [{**row, "pe": str(row["pe"])} for row in cohort_rows(cohort, cohort.targets)]


def test_a_classifier_goes_the_whole_way(patients: Corpus, tmp_path: Path) -> None:
    """A MIL head: one decision a patient in training, one a series in prediction, over all its windows."""
    module, config = recipe(
        "classify", *SCRATCH, *patients.data, "data.masks=", "network={head: mil, hidden: 8}", "steps=2",
        f"output={tmp_path / 'run'}",
    )  # fmt: skip
    assert module.main(config, Options(), CPU) == 0
    assert read_task(tmp_path / "run").pool == "bag"
    model = load_model(export_model(tmp_path / "run", tmp_path / "model"), device="cpu")
    model.selftest()
    assert model.decision is not None
    assert "pe" in model.decision.thresholds


def test_another_encoder_under_a_run_is_refused(patients: Corpus, tmp_path: Path) -> None:
    encoder = encoder_folder(tmp_path / "encoder", patients)
    common = [*SEGMENTER, *patients.data, f"encoder={encoder}", f"output={tmp_path / 'run'}", "steps=2", "mode=frozen"]
    module, config = recipe("segment", *common)
    assert module.main(config, Options(), CPU) == 0
    encoder.rename(tmp_path / "former")
    encoder_folder(encoder, patients, seen="validation")
    with pytest.raises(ConfigError, match="began from another encoder"):
        module.main(config, Options(), CPU)


def test_a_series_of_one_class_freezes_no_threshold(patients: Corpus, run: Path, tmp_path: Path) -> None:
    """Without both classes nothing is decided: the reason stands in the decision, predictions are probabilities."""
    table = tmp_path / "labels.csv"
    rows = read_rows(patients.files.labels)
    splits = {row["patient"]: row["split"] for row in read_rows(patients.splits)}
    kept = [row for row in rows if splits[row["patient"]] != "validation" or row["pe"] == "0"]
    table.write_text("patient,pe\n" + "".join(f"{row['patient']},{row['pe']}\n" for row in kept))
    trained(patients, tmp_path / "run", f"data.labels={table}", "data.masks=", "steps=1")
    decision = read_decision(tmp_path / "run")
    assert decision is not None
    assert decision.thresholds == {}
    assert "1 negative" in decision.validation["pe"]["reason"]
    assert read_json(tmp_path / "run" / "validation" / "step-000001" / "validation.json", "fmct-validation", "1.0")

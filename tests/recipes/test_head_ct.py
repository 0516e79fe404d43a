"""Head-CT findings from files in the public formats to the table: the whole way, in tiny."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fmct import distributed
from fmct.cli import main
from fmct.config import build, read_tree
from fmct.data.cohort import CohortConfig, read_cohort
from fmct.downstream.head_ct import PROBE, findings_table, table_text
from fmct.inference.feature_cache import FeatureCache
from fmct.inference.predictions import Prediction, read_predictions
from fmct.publish.adapters import convert, open_encoder
from fmct.publish.load import load_encoder
from fmct.store.ingest import IngestConfig, ingest
from fmct.store.reader import Store
from tests.datasets.public_sets import SLICES, write_scan
from tests.models.published_layouts import fmhct

PATIENTS = 18
TARGETS = ("subdural", "any")


@pytest.fixture(scope="module")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return key=value words of a run: 18 patients in RSNA's form, curated, with FM-HCT's released layout in tiny."""
    root = tmp_path_factory.mktemp("head-ct")
    folder = root / "stage_2_train"
    folder.mkdir()
    lines, tables = ["ID,Label"], {"train": ["img_path"], "validation": ["img_path"], "test": ["img_path"]}
    for number in range(PATIENTS):
        bleeding = number % 2 == 0
        names = [f"ID_{number:02d}{k:07x}" for k in range(SLICES)]
        series, study = f"1.2.{number}.1", f"ID_{number:02d}d3458f56"
        write_scan(folder, number, f"ID_p{number}", names=names, series=series, study=study, bleeding=bleeding)
        for name in names:
            kinds = {"subdural": int(bleeding)}
            kinds["any"] = max(kinds.values())
            for kind in ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"):
                lines.append(f"{name}_{kind},{kinds.get(kind, 0)}")
        split = "train" if number < 10 else "validation" if number < 14 else "test"
        tables[split].append(f"/data/{study}.nii.gz")
    (root / "stage_2_train.csv").write_text("\n".join(lines) + "\n")
    words = []
    for split, rows in tables.items():
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
        words += ["--split", f"{split}={root / split}.csv"]
    ingest([folder], root / "store", config=IngestConfig(workers=1))
    labels = root / "labels.csv"
    assert (
        main(["curate", "rsna-ich", *map(str, (root / "stage_2_train.csv", folder, root / "store", labels)), *words])
        == 0
    )
    torch.save({f"module.backbone.{n}": v for n, v in fmhct().items()}, root / "model_weights.pth")
    return {
        "encoder": str(root / "model_weights.pth"),
        "layout": "fmhct",
        "cache": str(root / "cache"),
        "data.store": str(root / "store"),
        "data.labels": str(labels),
        "data.splits": str(root / "labels_splits.csv"),
        "data.targets": f"[{','.join(TARGETS)}]",
        "published": "rsna",
        "epochs": "3",
        "draws_per_epoch": "16",
        "batch_size": "8",
        "run.save_every": "6",
    }


def finetune(words: dict[str, str], output: Path, *more: str) -> None:
    given = {**words, **dict(word.split("=", 1) for word in more)}
    items = [f"{key}={value}" for key, value in given.items()]
    assert main(["finetune", "configs/finetune/head_ct_paper.yaml", *items, f"output={output}"]) == 0


def test_a_linear_probe_from_public_files_to_the_table(rsna: dict[str, str], tmp_path: Path) -> None:
    finetune(rsna, tmp_path / "run")
    rows = read_predictions(tmp_path / "run" / "predictions.csv")
    assert {(row.split, row.target) for row in rows} == {(s, t) for s in ("validation", "test") for t in TARGETS}
    assert len(rows) == 8 * len(TARGETS)
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    any_row = next(row for row in table["rows"] if row["finding"] == "any")
    assert any_row["published"]["FM-HCT"] == 0.925
    assert table["rows"][-1]["finding"] == "macro of 2"  # three of the five published findings are not in this run
    labels = {
        row["series"]: float(row["any"]) for row in csv.DictReader(Path(rsna["data.labels"]).read_text().splitlines())
    }
    tested = [row for row in rows if (row.split, row.target) == ("test", "any")]
    pairs = [(a.probability, b.probability) for a in tested for b in tested if labels[a.series] > labels[b.series]]
    wanted = np.mean([(x > y) + 0.5 * (x == y) for x, y in pairs])
    assert any_row["patients"]["auroc"] == pytest.approx(wanted)
    assert "any" in (tmp_path / "run" / "table.md").read_text()


def test_heads_that_train_together_are_those_that_train_alone(rsna: dict[str, str], tmp_path: Path) -> None:
    finetune(rsna, tmp_path / "both")
    finetune(rsna, tmp_path / "alone", "data.targets=[subdural]")
    both = [p for p in read_predictions(tmp_path / "both" / "predictions.csv") if p.target == "subdural"]
    alone = read_predictions(tmp_path / "alone" / "predictions.csv")
    # the heads' initial weights are drawn one after the other, the first one's alike
    np.testing.assert_allclose([p.probability for p in both], [p.probability for p in alone], atol=1e-6)


def test_features_are_computed_once(rsna: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune(rsna, tmp_path / "first")
    encoder = open_encoder(rsna["encoder"], layout="fmhct", device="cpu")
    store = Store.open(rsna["data.store"])
    cache = FeatureCache(rsna["cache"], encoder, "pooled")
    monkeypatch.setattr(FeatureCache, "_compute", lambda *_: pytest.fail("computed again"))
    found = [arrays["vector"] for arrays in cache.of(store, store.entries)]
    monkeypatch.undo()
    np.testing.assert_array_equal(found[3], encoder.embed(store.volume(store.entries[3])))
    other = open_encoder(rsna["encoder"], layout="fmhct", device="cpu", window_order="resize-window")
    assert FeatureCache(rsna["cache"], other, "pooled").folder != cache.folder
    damaged = next(cache.folder.glob("*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = [arrays["vector"] for arrays in cache.of(store, store.entries)]
    np.testing.assert_array_equal(np.stack(again), np.stack(found))
    store.close()


@pytest.mark.parametrize(
    "words", [("head=attentive",), ("shots=2",), ("mode=full", "epochs=1"), ("from_scratch=true",)]
)
def test_every_way_to_train_runs(rsna: dict[str, str], tmp_path: Path, words: tuple[str, ...]) -> None:
    finetune(rsna, tmp_path / "run", *words)
    values = [row.probability for row in read_predictions(tmp_path / "run" / "predictions.csv")]
    assert np.isfinite(values).all()
    assert np.ptp(values) > 0


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(rsna: dict[str, str], tmp_path: Path) -> None:
    finetune(rsna, tmp_path / "whole", "run.save_every=2")
    finetune(rsna, tmp_path / "resumed", "run.save_every=2")
    checkpoints = sorted((tmp_path / "resumed" / "checkpoints").iterdir())
    for path in checkpoints[1:]:  # what a kill after the first checkpoint would have left
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()
    finetune(rsna, tmp_path / "resumed", "run.save_every=2")
    for name in ("predictions.csv", "table.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_shipped_configs_are_read(rsna: dict[str, str]) -> None:
    import finetune.classify
    import finetune.head_ct

    paper = build(
        finetune.head_ct.Config, read_tree(["configs/finetune/head_ct_paper.yaml"], ["output=x", "encoder=y"])
    )
    assert (paper.batch_size, paper.epochs, paper.epoch, paper.flip[0]) == (64, 10, 8, 0.0)
    tree = read_tree(["configs/finetune/head_ct.yaml"], ["output=x", "encoder=y"])
    assert len(build(finetune.classify.Config, tree).data.targets) == 10


def test_another_projects_encoder_becomes_a_folder_that_every_command_takes(
    rsna: dict[str, str], tmp_path: Path
) -> None:
    folder = convert(rsna["encoder"], tmp_path / "encoder", layout="fmhct")
    encoder = load_encoder(folder, device="cpu")
    assert encoder.selftest().bit_equal
    store = Store.open(rsna["data.store"])
    volume = store.volume(store.entries[0])
    direct = open_encoder(rsna["encoder"], layout="fmhct", device="cpu")
    np.testing.assert_array_equal(encoder.embed(volume), direct.embed(volume))
    store.close()


def test_the_cohort_has_the_published_splits(rsna: dict[str, str]) -> None:
    cohort = read_cohort(
        CohortConfig(rsna["data.store"], rsna["data.labels"], list(TARGETS), splits=rsna["data.splits"])
    )
    assert {split: len(cohort.patients(split)) for split in ("train", "validation", "test")} == {
        "train": 10,
        "validation": 4,
        "test": 4,
    }
    assert distributed.world_size() == 1


def rows_of(scores: dict[str, tuple[float, ...]]) -> list[Prediction]:
    return [
        Prediction(patient, f"{patient}{number}", target, value)
        for target in PROBE["cq500"]
        if target != "macro"
        for patient, values in scores.items()
        for number, value in enumerate(values)
    ]


def test_series_and_patients_are_counted_apart() -> None:
    """CQ500: one patient's eight series are one patient; by series they weigh eight times."""
    scores = {"a": (0.9,) * 8, "b": (0.4,), "c": (0.5,), "d": (0.2,)}
    truth = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
    labels = {f"{p}{k}": truth[p] for p, values in scores.items() for k in range(len(values))}
    rows = findings_table(rows_of(scores), dict.fromkeys(PROBE["cq500"], labels), published="cq500")
    assert rows[0].series.value == pytest.approx((8 * 2 + 1) / (9 * 2))
    assert rows[0].patients.value == pytest.approx(3 / 4)
    assert (rows[-1].finding, rows[-1].published[2]) == ("macro", 0.800)
    assert rows[-1].patients.value == pytest.approx(3 / 4)
    assert ".800" in table_text(rows)

"""Attention-guided embolism end to end on tiny SYNTHETIC angiograms: train, resume, export, predict, evaluate."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fmct import cli
from fmct.artefacts import read_json
from fmct.config import build, import_recipe, read_tree
from fmct.data.cohort import read_cohort
from fmct.errors import ArtefactError, ConfigError, DataError
from fmct.inference.predictions import read_predictions
from fmct.publish.decision import read_decision
from fmct.publish.export_model import export_model
from fmct.publish.load_model import load_model
from fmct.publish.task_record import read_task
from fmct.table_files import read_rows
from fmct.train import checkpoint
from fmct.train.session import Options
from tests.data.angiograms import SPACING, Angiograms, angiograms

CPU = torch.device("cpu")
SHORT = [
    "steps=4", "batch_size=4", "workers=0", "run.save_every=2", "run.measure_peak=false", "run.progress_s=1e9",
    "engine.kind=torch",
]  # fmt: skip
SLABS = [
    "slabs.size=[5,48,48]", f"slabs.spacing_mm={list(SPACING)}",
    "network={layers: [1, 1, 1, 1], channels: [8, 8, 8, 16], norm: batch, activation: relu_max}",
]  # fmt: skip
SERIES = ["stage=series", "reader={reduce: 4, hidden: 4, direction: both}", "schedules.learning_rate.peak=0.01"]


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Angiograms:
    return angiograms(tmp_path_factory.mktemp("angiograms"))


def trained(output: Path, *overrides: str, config: str = "attention_pe") -> Path:
    tree = read_tree([f"finetune/{config}.yaml"], [*SHORT, f"output={output}", *overrides])
    module = import_recipe(tree["recipe"])
    assert module.main(build(module.Config, tree), Options(), CPU) == 0
    return output


@pytest.fixture(scope="module")
def slabs(patients: Angiograms, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "slabs", *SLABS, *patients.data)


@pytest.fixture(scope="module")
def series(patients: Angiograms, slabs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "series", *SLABS, *SERIES, f"slabs_run={slabs}", *patients.data)


def parameters(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    return checkpoint.read(newest).parameters


@pytest.mark.parametrize("stage", ["slabs", "series"])
def test_resume_is_bit_for_bit(patients: Angiograms, slabs: Path, series: Path, tmp_path: Path, stage: str) -> None:
    whole = {"slabs": slabs, "series": series}[stage]
    overrides = [*SLABS, *patients.data] + ([*SERIES, f"slabs_run={slabs}"] if stage == "series" else [])
    parts = trained(tmp_path / "parts", *overrides)
    (parts / "checkpoints" / "step-000004" / "state.json").write_text("broken")
    trained(parts, *overrides)
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    left, right = parameters(whole), parameters(parts)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_stage_two_keeps_stage_one_as_it_was(slabs: Path, series: Path) -> None:
    """Frozen to the bit, averages of batch norm included, while the reader moves."""
    before, after = parameters(slabs), parameters(series)
    for name, value in before.items():
        assert torch.equal(after[name.replace("network.", "network.slabs.", 1)], value)
    assert any(name.startswith("network.reader.") for name in after)
    record = read_task(series)
    assert record.kind == "attention_pe"
    assert record.preprocessing == read_task(slabs).preprocessing
    assert list(series.with_name("series.features").rglob("*.npz"))


def test_train_predict_evaluate(patients: Angiograms, series: Path, tmp_path: Path) -> None:
    """N5, N7 and the outputs: probability and decision, a row a slab, attention on the original grid, overlays."""
    model, out = tmp_path / "model", tmp_path / "predictions"
    load_model(export_model(series, model), device="cpu").selftest()
    assert cli.main(["predict", str(model), str(patients.store), str(out), "--attention", "--device", "cpu"]) == 0
    rows = {row.series: row for row in read_predictions(out / "predictions.csv")}
    seen = {row.series: row for row in read_predictions(series / "validation" / "step-000004" / "predictions.csv")}
    for name, row in seen.items():
        assert rows[name].probability == pytest.approx(row.probability, rel=1e-6)
        assert rows[name].decision == row.decision
    decision = read_decision(series)
    assert decision is not None
    assert decision.rule == "cls"
    slabs = read_rows(out / "slabs.csv")
    cohort = read_cohort(build(import_recipe("finetune.attention_pe").Config, _tree(patients)).data)
    for sample in cohort.samples:
        own = [row for row in slabs if row["series"] == sample.entry.id]
        assert [int(row["slab"]) for row in own] == list(range(6))  # 26 slices of 5 mm in slabs of 5
        heights = [float(row["z_high_mm"]) - float(row["z_low_mm"]) for row in own]
        assert heights == pytest.approx([25.0] * 6)
        assert [float(row["z_low_mm"]) for row in own[1:]] == pytest.approx([float(r["z_high_mm"]) for r in own[:-1]])
        image = nib.load(out / "attention" / f"{sample.entry.id}.nii.gz")
        assert image.shape == tuple(reversed(sample.entry.shape))
        np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], np.array(sample.entry.original_affine), atol=1e-4)
    report = tmp_path / "report"
    command = ["evaluate", str(out), str(series / "cohort.csv"), str(report), "--scans", str(patients.store)]
    assert cli.main([*command, "--title", "SYNTHETIC"]) == 0
    page = (report / "report.html").read_text()
    assert "Where it looked" in page
    assert "data:image/png" in page.partition("Where it looked</h2>")[2]
    assert read_json(report / "results.json", "fmct-evaluation", "1.0")


def test_the_transformer_variant_trains_and_reads(patients: Angiograms, tmp_path: Path) -> None:
    """The same losses on a 3D transformer: attention of its pooling, and stage two on its tokens."""
    words = [
        "architecture={size: tiny, embed_dim: 24, num_heads: 2, depth: 1, patch_size: [4, 8, 8]}",
        "input={windows: [{low: -1024, high: 500}], spacing_mm: [5, 6, 6]}", "slabs.size=[8,48,48]",
        "slabs.spacing_mm=[]", "steps=2",
    ]  # fmt: skip
    run = trained(tmp_path / "slabs", *words, *patients.data)
    assert read_task(run).preprocessing.input.mode == "slabs"
    assert {"classification", "attention"} <= {
        key.removeprefix("loss/") for key in _first_line(run) if key.startswith("loss/")
    }
    again = trained(
        tmp_path / "series", *SERIES, f"slabs_run={run}", "slabs.size=[]", "slabs.spacing_mm=[]", "input=null",
        "steps=2", *patients.data,
    )  # fmt: skip
    assert read_task(again).architecture["encoder"]["embed_dim"] == 24


def test_the_published_preset_runs(patients: Angiograms, tmp_path: Path) -> None:
    """Two outputs, the scan's own pixels (0 mm), HU to 0..255, area pooling: as published, small; to the report."""
    small = ["slabs.size=[5,32,32]", "network.layers=[1,1,1,1]", "network.channels=[8,8,8,8]", "steps=2"]
    run = trained(tmp_path / "paper", *small, *patients.data, config="attention_pe_paper")
    record = read_task(run)
    assert record.preprocessing.input.spacing_mm == (2.5, 0.0, 0.0)
    load_model(export_model(run, tmp_path / "model"), device="cpu").selftest()
    series = trained(tmp_path / "series", *small, *SERIES, f"slabs_run={run}", *patients.data, "steps=2",
                     config="attention_pe_paper")  # fmt: skip
    model, out = export_model(series, tmp_path / "series-model"), tmp_path / "out"
    assert cli.main(["predict", str(model), str(patients.store), str(out), "--attention", "--device", "cpu"]) == 0
    words = ["evaluate", str(out), str(series / "cohort.csv"), str(tmp_path / "report"), "--resamples", "100"]
    assert cli.main([*words, "--scans", str(patients.store)]) == 0
    assert "Where it looked" in (tmp_path / "report" / "report.html").read_text()


def test_what_cannot_be_run_is_refused(patients: Angiograms, slabs: Path, series: Path, tmp_path: Path) -> None:
    def refused(match: str, *words: str, error: type[Exception] = ConfigError) -> None:
        with pytest.raises(error, match=match):
            trained(tmp_path / "refused", *SLABS, *patients.data, *words)

    refused("stage is one of", "stage=both")
    refused("data.targets", "data.targets=[]")
    refused("play no part", "windows.size=[8,8,8]")
    refused("gives no mask", "validation.decision=volume")
    refused("name the folder that holds the masks", "data.masks=''")
    refused("say stage=series", f"slabs_run={slabs}")
    refused(r"slabs\.size", "slabs.size=[]")
    refused("mode=full", "mode=frozen")
    refused("needs slabs_run=RUN", *SERIES)
    refused("no run of fmct finetune", *SERIES, f"slabs_run={tmp_path}", error=ArtefactError)
    refused("stage=series; slabs_run names", *SERIES, f"slabs_run={series}", error=ArtefactError)
    refused("its slabs are others", *SERIES, f"slabs_run={slabs}", "slabs.size=[5,32,32]")
    swapped = tmp_path / "splits.csv"
    other = {"train": "test", "test": "train", "validation": "train"}
    rows = [f"{row['patient']},{other[row['split']]}" for row in read_rows(patients.files.splits)]
    swapped.write_text("\n".join(["patient,split", *rows]) + "\n")
    refused("have seen their masks", *SERIES, f"slabs_run={slabs}", f"data.splits={swapped}", error=DataError)
    refused("shorter than one slab", "slabs.size=[40,48,48]", error=DataError)


def _tree(patients: Angiograms) -> dict[str, object]:
    return read_tree(["finetune/attention_pe.yaml"], [*SHORT, *SLABS, *patients.data, "output=unused"])


def _first_line(run: Path) -> dict[str, object]:
    import json

    return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])

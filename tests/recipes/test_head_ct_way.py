"""Head-CT findings, "done when": public formats → ingest → curate → finetune → export → predict → evaluate.

By the published protocol and by fmct's own default, on CQ500's form; every step is the command itself. RSNA's form goes
the same way from its slice labels on: tests/recipes/test_head_ct.py.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fmct.cli import main
from fmct.evaluate.evaluation import read_model
from fmct.inference.predictions import read_predictions
from fmct.publish.folder import write_encoder
from fmct.publish.load_model import load_model
from tests.datasets.public_sets import SLICES, write_scan
from tests.datasets.test_public_labels import reads
from tests.models.published_layouts import fmhct
from tests.publish.tiny import CONFIG, PREPROCESSING, tiny_encoder, tiny_weights

SPLITS = {"train": range(6), "validation": range(6, 10), "test": range(10, 14)}


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def names(split: str) -> str:
    return f"{split}.csv"


@pytest.fixture(scope="module")
def fmhct_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return FM-HCT's released layout, in tiny, as its owners' file."""
    path = tmp_path_factory.mktemp("weights") / "model_weights.pth"
    torch.save({f"module.backbone.{n}": v for n, v in fmhct().items()}, path)
    return path


@pytest.fixture(scope="module")
def cq500(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with CQ500/, reads.csv and split files: 14 patients, every second one bleeding on the left."""
    root = tmp_path_factory.mktemp("cq500")
    votes, paths = {}, {}
    for number in range(14):
        bleeding = number % 2 == 0
        place = root / "CQ500" / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / "CT Plain"
        place.mkdir(parents=True)
        slices = [f"CT{k:06d}" for k in range(SLICES)]
        write_scan(place, number, f"CQ500-CT-{number}", names=slices, series=f"1.3.{number}", study=f"1.4.{number}",
                   bleeding=bleeding)  # fmt: skip
        votes[number] = {"ICH": "110", "BleedLocation-Left": "111"} if bleeding else {}
        paths[number] = f"/data/CQ500/{place.relative_to(root / 'CQ500')}.nii.gz"
    (root / "reads.csv").write_text(reads(votes))
    for split, numbers in SPLITS.items():
        (root / names(split)).write_text("\n".join(["img_path", *(paths[n] for n in numbers)]) + "\n")
    run("ingest", root / "CQ500", root / "STORE", "workers=1")
    tables = [word for split in SPLITS for word in ("--split", f"{split}={root / names(split)}")]
    run("curate", "cq500", root / "reads.csv", root / "CQ500", root / "STORE", root / "labels.csv", *tables)
    return root


def words(root: Path) -> list[str]:
    tables = {"store": "STORE", "labels": "labels.csv", "splits": "labels_splits.csv"}
    return [*(f"data.{key}={root / name}" for key, name in tables.items()), "data.targets=[ICH,BleedLocation-Left]"]


def predicted(root: Path, trained: Path, out: Path) -> dict[str, float]:
    """Export a run, predict its cohort, and return {series/target: probability}."""
    run("export", trained, out / "MODEL")
    run("predict", out / "MODEL", root / "STORE", out / "said", "--only", trained / "cohort.csv", "--precision", "fp32")
    return {f"{row.series}/{row.target}": row.probability for row in read_predictions(out / "said" / "predictions.csv")}


def judged(trained: Path, out: Path) -> set[str]:
    """Evaluate what was predicted, on the test split alone, and return the findings of the report."""
    run("evaluate", out / "said", trained / "cohort.csv", out / "report", "--resamples", "100")
    assert (out / "report" / "report.html").stat().st_size > 10_000
    results = json.loads((out / "report" / "results.json").read_text())
    assert results["split"] == "test"
    assert {finding["flow"]["evaluated"] for finding in results["findings"]} == {len(SPLITS["test"])}
    return {finding["target"] for finding in results["findings"]}


def test_the_published_protocol_runs_to_a_report_and_the_model_says_what_its_run_said(
    cq500: Path, tmp_path: Path
) -> None:
    """Linear heads learn on a series' mean CLS over its tiles; the model's logits are averaged with those weights."""
    preprocessing = replace(PREPROCESSING, input=replace(PREPROCESSING.input, spacing_mm=(6.0, 6.0, 6.0)))
    encoder = write_encoder(tmp_path / "ENCODER", tiny_weights(), CONFIG, preprocessing)
    run("finetune", "configs/finetune/head_ct_paper.yaml", f"encoder={encoder}", *words(cq500),
        f"output={tmp_path / 'RUN'}", "epochs=2", "draws_per_epoch=8", "batch_size=4", "published=cq500")  # fmt: skip
    said = predicted(cq500, tmp_path / "RUN", tmp_path)
    rows = read_predictions(tmp_path / "RUN" / "predictions.csv")
    np.testing.assert_allclose([said[f"{r.series}/{r.target}"] for r in rows], [r.probability for r in rows], atol=1e-5)
    model = load_model(tmp_path / "MODEL", device="cpu")
    assert model.record.pool == "foreground"
    assert model.decision is not None
    assert set(model.decision.thresholds) == {"ICH", "BleedLocation-Left"}
    validation = [r.probability for r in rows if r.split == "validation" and r.target == "ICH"]
    assert min(abs(model.decision.thresholds["ICH"] - value) for value in validation) < 1e-6
    assert judged(tmp_path / "RUN", tmp_path) == {"ICH", "BleedLocation-Left"}


def test_attentive_heads_on_published_weights_become_a_model(cq500: Path, fmhct_file: Path, tmp_path: Path) -> None:
    run("finetune", "configs/finetune/head_ct_paper.yaml", f"encoder={fmhct_file}", "layout=fmhct", *words(cq500),
        f"output={tmp_path / 'RUN'}", "epochs=1", "draws_per_epoch=4", "batch_size=4", "head=attentive")  # fmt: skip
    said = predicted(cq500, tmp_path / "RUN", tmp_path)
    rows = read_predictions(tmp_path / "RUN" / "predictions.csv")
    # the run keeps tokens as float16
    np.testing.assert_allclose([said[f"{r.series}/{r.target}"] for r in rows], [r.probability for r in rows], atol=2e-3)
    assert main(["export", str(tmp_path / "RUN"), str(tmp_path / "OTHER"), "--step", "1"]) == 2


def test_fine_tuned_encoders_are_a_model_a_finding(
    cq500: Path, fmhct_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("finetune", "configs/finetune/head_ct_paper.yaml", f"encoder={fmhct_file}", "layout=fmhct", *words(cq500),
        f"output={tmp_path / 'RUN'}", "mode=full", "epochs=1", "draws_per_epoch=4", "batch_size=2")  # fmt: skip
    run("export", tmp_path / "RUN", tmp_path / "MODELS")
    run("predict", tmp_path / "MODELS", cq500 / "STORE", tmp_path / "said", "--precision", "fp32")
    model, _ = read_model(str(tmp_path / "said"))
    said = {(row.series, row.target): row for row in model.predictions}
    assert {row.seed for row in model.predictions} == {"0"}
    rows = read_predictions(tmp_path / "RUN" / "predictions.csv")
    # the run keeps inputs as float16
    np.testing.assert_allclose(
        [said[r.series, r.target].probability for r in rows], [r.probability for r in rows], atol=5e-3
    )
    (tmp_path / "RUN" / "ICH" / "predictor.safetensors").unlink()  # as a run is that was killed before its end
    assert main(["export", str(tmp_path / "RUN" / "ICH"), str(tmp_path / "OTHER")]) == 2
    assert "has not ended" in capsys.readouterr().err


def test_the_default_runs_to_a_report(cq500: Path, tmp_path: Path) -> None:
    """`configs/finetune/head_ct.yaml`: one network, one sigmoid a finding, thresholds from validation."""
    run("finetune", "configs/finetune/head_ct.yaml", f"encoder={tiny_encoder(tmp_path / 'ENCODER')}", *words(cq500),
        f"output={tmp_path / 'RUN'}", "steps=2", "batch_size=4", "workers=0", "run.measure_peak=false")  # fmt: skip
    said = predicted(cq500, tmp_path / "RUN", tmp_path)
    assert len(said) == 2 * 14
    assert np.isfinite(list(said.values())).all()
    assert judged(tmp_path / "RUN", tmp_path) == {"ICH", "BleedLocation-Left"}

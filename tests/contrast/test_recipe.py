"""The contrast recipe end to end on SYNTHETIC vessels: train, resume, export, predict, evaluate; and bad input."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fmct import cli
from fmct.contrast.hu_baseline import read_baseline
from fmct.errors import ConfigError, DataError
from fmct.inference.decision import Evidence, decide
from fmct.inference.predictions import read_predictions
from fmct.metrics.calibration import temperature_of
from fmct.metrics.delong import auroc
from fmct.publish.decision import Decision, read_decision
from fmct.publish.load_model import load_model
from fmct.table_files import read_rows
from fmct.train import checkpoint
from fmct.train.session import Options
from fmct.volume import Volume
from tests.contrast import bright_vessels
from tests.contrast.conftest import Trained


def test_the_run_ends_with_both_models_tables(trained: Trained) -> None:
    decision = read_decision(trained.run)
    assert decision is not None
    low, high = decision.abstain["contrast"]
    assert low <= decision.thresholds["contrast"] <= high
    assert decision.thresholds.keys() == {"contrast"}
    facts = decision.validation["contrast"]
    assert (facts["positives"], facts["negatives"], facts["unit"]) == (3, 3, "series")
    encoder, baseline = (read_predictions(trained.run / name) for name in ("predictions.csv", "predictions_hu.csv"))
    assert {(p.series, p.target, p.split) for p in encoder} == {(p.series, p.target, p.split) for p in baseline}
    assert {p.split for p in encoder} == {"validation", "test"}
    of_series = [p for p in encoder if p.target.startswith("phase_")]
    assert sum(p.probability for p in of_series) == pytest.approx(12, abs=1e-5)
    rows = {(row["model"], row["split"]): row for row in json.loads((trained.run / "table.json").read_text())["rows"]}
    assert rows["HU baseline", "test"]["auroc"] == 1
    assert rows["encoder", "test"]["auroc"] == 1
    assert (trained.run / "table.md").read_text().startswith("| model |")
    kept = read_rows(trained.run / "hu_features.csv")
    assert len(kept) == 30


def test_predict_writes_calls_tiles_and_the_baseline_and_evaluate_compares(
    trained: Trained,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    assert cli.main(["predict", str(trained.model), str(trained.cohort.store), str(out), "--device", "cpu",
                     "--only", str(trained.run / "cohort.csv")]) == 0  # fmt: skip
    calls = {row["series"]: row for row in read_rows(out / "contrast.csv")}
    assert {row["call"] for row in calls.values()} <= {"yes", "no", "uncertain"}
    at_end = {p.series: p for p in read_predictions(trained.run / "predictions.csv") if p.target == "contrast"}
    by_command = {p.series: p for p in read_predictions(out / "predictions.csv") if p.target == "contrast"}
    for series, prediction in at_end.items():
        assert by_command[series].probability == pytest.approx(prediction.probability, rel=1e-5)
        assert by_command[series].decision == prediction.decision
        assert float(calls[series]["probability"]) == pytest.approx(prediction.probability, rel=1e-5)
        assert calls[series]["phase"] in ("native", "arterial", "portal", "delayed")
        assert 0 <= float(calls[series]["seconds"]) <= 900
    tiles = read_rows(out / "tiles.csv")
    assert len(tiles) == 4 * len(calls)
    assert float(tiles[0]["z_low_mm"]) < float(tiles[0]["z_high_mm"])
    report = tmp_path / "report"
    assert cli.main(["evaluate", f"encoder={out}", f"hu={out / 'predictions_hu.csv'}", str(trained.run / "cohort.csv"),
                     str(report), "--unit", "series", "--split", "", "--resamples", "100"]) == 0  # fmt: skip
    results = json.loads((report / "results.json").read_text())
    assert {f["model"] for f in results["findings"]} == {"encoder", "hu"}
    found = next(f for f in results["findings"] if (f["model"], f["target"]) == ("encoder", "contrast"))
    assert (found["unit"], found["flow"]["evaluated"]) == ("series", 6)  # the test split of cohort.csv
    assert any(c["test"] == "sign flips by patient" for c in results["comparisons"])


def parameters(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    return checkpoint.read(newest).parameters


def test_a_killed_run_goes_on_to_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    """Reference A.12 item 17: resumed after a kill, the weights are those of the uninterrupted run, to the bit."""
    short = [*trained.cohort.data, "steps=4", "run.save_every=2", "validation.split="]
    runs = {}
    for name in ("whole", "parts"):
        module, config = bright_vessels.recipe(*short, f"output={tmp_path / name}")
        assert module.main(config, Options(), bright_vessels.CPU) == 0
        runs[name] = tmp_path / name
    (runs["parts"] / "checkpoints" / "step-000004" / "state.json").write_text("cut short")
    module, config = bright_vessels.recipe(*short, f"output={runs['parts']}", "run.keep_last=2")
    assert module.main(config, Options(), bright_vessels.CPU) == 0
    whole, parts = parameters(runs["whole"]), parameters(runs["parts"])
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_temperature_keeps_ranks_and_helps_the_likelihood() -> None:
    """Reference A.12 item 16: AUROC unchanged to 1e-12, validation log loss not worse, also where classes separate."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    for noise in (0.05, 1.0, 4.0):
        found = [Evidence(float(z)) for z in 3.0 * (labels - 0.5 + noise * random.normal(size=60))]
        cold = np.array([one.probability for one in found])
        decision = Decision(temperature={"contrast": temperature_of(cold, labels)})
        warm = np.array([decide(decision, "contrast", one).probability for one in found])
        assert auroc(warm, labels).value == pytest.approx(auroc(cold, labels).value, abs=1e-12)
        losses = [-np.log(np.where(labels == 1, p, 1 - p)).mean() for p in (cold, warm)]
        assert losses[1] <= losses[0] + 1e-12
    assert temperature_of(np.where(labels == 1, 0.9, 0.2), labels) == 1


def test_scans_that_cannot_be_judged_fail_with_a_reason(trained: Trained, tmp_path: Path) -> None:
    """Reference A.12 item 13 through `fmct predict`: exit code 1, a row without probability, a code in the ledger."""
    volume = bright_vessels.volume(1)
    slices = dataclasses.replace(volume, voxels=np.ascontiguousarray(volume.voxels[:2]))
    constant = dataclasses.replace(volume, voxels=np.full_like(volume.voxels, 40))
    holes = volume.voxels.astype(np.float32)
    holes[3, 3, 3] = np.nan
    for name, scan in {"two": slices, "flat": constant, "nan": Volume(holes, volume.affine), "good": volume}.items():
        bright_vessels.write(tmp_path / "scans" / f"{name}.nii.gz", scan)
    out = tmp_path / "out"
    assert cli.main(["predict", str(trained.model), str(tmp_path / "scans"), str(out), "--device", "cpu"]) == 1
    rows = {p.patient: p for p in read_predictions(out / "predictions.csv") if p.target == "contrast"}
    assert {name for name, p in rows.items() if p.failed} == {"two", "flat", "nan"}
    assert all(rows[name].error for name in ("two", "flat", "nan"))
    codes = {line["patient"]: line["code"] for line in map(json.loads, (out / "ledger.jsonl").read_text().splitlines())}
    assert codes == {"two": "too-few-slices", "flat": "implausible-hu", "nan": "non-finite-values", "good": ""}


def test_the_folder_carries_its_baseline_and_verifies(trained: Trained, tmp_path: Path) -> None:
    assert load_model(trained.model, device="cpu").selftest().worst <= 1e-4
    assert "contrast: uncertain from 0.2 to" in (trained.model / "README.md").read_text()
    baseline = read_baseline(trained.model / "baseline.json")
    assert baseline.decision.thresholds.keys() == {"contrast"}
    assert set(baseline.phases) == {"native", "arterial", "portal", "delayed"}
    other = shutil.copytree(trained.model, tmp_path / "other")
    (other / "baseline.json").write_text("{}")
    assert cli.main(["predict", str(other), str(trained.cohort.store), str(tmp_path / "out")]) == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.targets=[pe]", "learns \\[contrast\\]"),
        ("unet={}", "tokens"),
        ("windows.per_series=3", "multiple"),
        ("validation.abstain=[0.9, 0.1]", "abstain"),
        ("validation.unit=voxel", "unit"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    trained: Trained,
    tmp_path: Path,
    override: str,
    says: str,
) -> None:
    with pytest.raises(ConfigError, match=says):
        started(*trained.cohort.data, f"output={tmp_path / 'run'}", "steps=2", "unet=null", override)


@pytest.mark.parametrize(("left", "says"), [("1", "negative"), ("0", "positive")])
def test_a_training_split_of_one_class_is_refused(trained: Trained, tmp_path: Path, left: str, says: str) -> None:
    """Bad input: there is nothing to learn from one class; the table and the split are named."""
    rows = trained.cohort.labels.read_text().splitlines()
    one = tmp_path / "one.csv"
    one.write_text("\n".join([rows[0], *(row for row in rows[1:] if row.split(",")[2] == left)]) + "\n")
    with pytest.raises(DataError, match=rf"one\.csv: no series of the split train is {says} for contrast"):
        started(*trained.cohort.data, f"data.labels={one}", f"output={tmp_path / 'run'}", "steps=2")


def started(*overrides: str) -> None:
    """Run the recipe with these overrides."""
    module, config = bright_vessels.recipe(*overrides)
    module.main(config, Options(), bright_vessels.CPU)

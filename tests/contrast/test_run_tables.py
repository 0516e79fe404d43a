"""The HU baseline stands beside the encoder in each report, unless its table alone is asked for."""

import json
from pathlib import Path

from fmct import cli
from fmct.contrast.run_tables import with_baseline
from tests.contrast.conftest import Trained


def models(trained: Trained, folder: Path, predictions: str) -> tuple[set[str], list[dict[str, object]]]:
    """Return the names in the report of `fmct evaluate PREDICTIONS`, and its comparisons."""
    words = ["evaluate", predictions, str(trained.run / "cohort.csv"), str(folder), "--unit", "series"]
    assert cli.main([*words, "--split", "", "--resamples", "100"]) == 0
    results = json.loads((folder / "results.json").read_text())
    return {finding["model"] for finding in results["findings"]}, results["comparisons"]


def test_the_baseline_is_in_the_report_without_being_named(trained: Trained, tmp_path: Path) -> None:
    """Issue: a baseline without a network stands beside the model in each report."""
    names, comparisons = models(trained, tmp_path / "both", str(trained.run))
    assert names == {"run", "HU baseline"}
    assert comparisons
    assert "HU baseline" in (tmp_path / "both" / "report.html").read_text()
    alone, none = models(trained, tmp_path / "alone", str(trained.run / "predictions.csv"))
    assert len(alone) == 1
    assert none == []


def test_named_models_stay_as_they_are(trained: Trained, tmp_path: Path) -> None:
    named, path = f"gate={trained.run}", str(trained.run)
    assert with_baseline([named]) == [named, f"HU baseline={trained.run / 'predictions_hu.csv'}"]
    assert with_baseline([named, path]) == [named, path]
    assert with_baseline([str(tmp_path)]) == [str(tmp_path)]

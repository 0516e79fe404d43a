"""Masks of several targets a series: SERIES_TARGET.nii.gz as predicted, SERIES/TARGET.nii.gz as drawn."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmct.cli import main
from fmct.inference.predictions import Prediction, write_predictions

SHAPE, AFFINE = (10, 16, 16), np.diag([2.0, 2.0, 2.0, 1.0])
TARGETS = ("bleed", "mass effect")


def save(path: Path, start: int, length: int) -> None:
    """Write a mask of `length` voxels in a row from `start` on."""
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    voxels[5, 5, start : start + length] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.T, AFFINE), path)  # type: ignore[attr-defined]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two models' predictions, drawn masks and labels of six patients and two targets."""
    rows, labels = [], ["patient,series,bleed,mass effect"]
    for number in range(6):
        series, ill = f"s{number}", number % 2
        labels.append(f"p{number},{series},{ill},{ill}")
        rows += [Prediction(f"p{number}", series, target, 0.3 + 0.4 * ill) for target in TARGETS]
        if ill:
            save(tmp_path / "drawn" / series / "bleed.nii.gz", 2, 4)
            save(tmp_path / "drawn" / series / "mass effect.nii.gz", 8, 4)
        for model, found in (("all", 4), ("half", 2)):
            save(tmp_path / model / "masks" / f"{series}_bleed.nii.gz", 2, found * ill)
            save(tmp_path / model / "masks" / f"{series}_mass_effect.nii.gz", 8, 4 * ill)
    for model in ("all", "half"):
        write_predictions(tmp_path / model / "predictions.csv", rows)
    (tmp_path / "labels.csv").write_text("\n".join(labels) + "\n")
    return tmp_path


def evaluate(folder: Path, *more: str) -> int:
    words = [str(folder / "all"), str(folder / "half"), str(folder / "labels.csv"), str(folder / "out")]
    return main(["evaluate", *words, "--masks", str(folder / "drawn"), "--resamples", "100", *more])


def test_each_target_is_measured_against_its_own_masks(folder: Path) -> None:
    assert evaluate(folder) == 0
    results = json.loads((folder / "out" / "results.json").read_text())
    dice = {name: found["summary"]["Dice"]["estimate"] for name, found in results["segmentation"].items()}
    assert dice == pytest.approx(
        {"all, bleed": 1, "all, mass effect": 1, "half, bleed": 2 * 2 / (2 + 4), "half, mass effect": 1}
    )
    pairs = {(r["first"], r["second"]): r["difference"]["estimate"] for r in results["mask_contrasts"]["Dice"]}
    assert pairs == pytest.approx(
        {("half, bleed", "all, bleed"): 2 / 3 - 1, ("half, mass effect", "all, mass effect"): 0}
    )
    assert "half, bleed" in (folder / "out" / "report.html").read_text()


def test_one_target_can_be_named_and_a_strange_one_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, "--mask-target", "fracture") == 2
    assert "--mask-target fracture: all predicts bleed, mass effect" in capsys.readouterr().err

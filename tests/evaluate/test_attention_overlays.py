"""Overlays of attention: whose scans are shown, what is left out and said, and that a picture comes of it."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmct.evaluate.attention_overlays import attention_figure, looks_of
from fmct.evaluate.classification import Settings
from fmct.evaluate.evaluation import Model, evaluate
from fmct.evaluate.evaluation_report import sections
from fmct.inference.predictions import Prediction
from fmct.phantoms.body import axial_affine
from fmct.table_files import write_rows
from fmct.volume import Volume

SHAPE, SPACING = (8, 10, 12), (3.0, 2.0, 2.0)
PROBABILITIES = {"a": 0.9, "b": 0.8, "c": 0.2, "d": 0.7, "e": 0.1, "f": 0.4, "g": 0.6, "h": 0.3}
POSITIVE = set("abch")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of predictions with attention maps, slabs and labels of eight patients."""
    affine = axial_affine(SHAPE, SPACING)[:, [2, 1, 0, 3]]
    (tmp_path / "attention").mkdir()
    (tmp_path / "references").mkdir()
    for number, name in enumerate(PROBABILITIES):
        heat = np.zeros(SHAPE[::-1], dtype=np.float32)
        heat[number, 3, 4] = 0.5
        nib.Nifti1Image(heat, affine).to_filename(tmp_path / "attention" / f"{name}.nii.gz")
        nib.Nifti1Image((heat > 0).astype(np.uint8), affine).to_filename(tmp_path / "references" / f"{name}.nii.gz")
    rows = [
        {"series": name, "target": "pe", "z_low_mm": 10.0 * k, "z_high_mm": 10.0 * k + 10, "probability": 0.5}
        for name in PROBABILITIES
        for k in range(2)
    ]
    write_rows(tmp_path / "slabs.csv", list(rows[0]), rows)
    labels = [{"patient": name, "pe": int(name in POSITIVE)} for name in PROBABILITIES]
    write_rows(tmp_path / "labels.csv", ["patient", "pe"], labels)
    return tmp_path


def scan(name: str) -> Volume | None:
    voxels = np.full(SHAPE, 40, dtype=np.int16)
    return None if name == "b" else Volume(voxels, axial_affine(SHAPE, SPACING))


def test_the_surest_positives_and_the_largest_errors_are_shown(folder: Path) -> None:
    model = Model("model", [Prediction(name, name, "pe", p) for name, p in PROBABILITIES.items()])
    evaluation = evaluate([model], folder / "labels.csv", settings=Settings(resamples=100))
    looks = looks_of(evaluation, model, folder, references=folder / "references", most=4)
    assert [look.patient for look in looks] == [
        "a",
        "b",
        "c",
        "d",
    ]  # two right, then .8, .7 off (c, h and d: ties by |error|)
    assert looks[0].slabs == ((0.0, 10.0, 0.5), (10.0, 20.0, 0.5))
    assert looks[0].reference == folder / "references" / "a.nii.gz"
    picture, notes = attention_figure(looks, scan)
    assert picture.startswith(b"\x89PNG")
    assert notes == ["b is not shown: no scan of this name, or of patient b."]
    titles = [section.title for section in sections(evaluation, scan, {"model": looks})]
    assert "Where it looked" in titles
    assert "Where it looked" not in [section.title for section in sections(evaluation, scan)]
    (folder / "attention").rename(folder / "elsewhere")
    assert looks_of(evaluation, model, folder) == []

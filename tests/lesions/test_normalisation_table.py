"""MR files of every sort through every kind of normalisation: volumes of 4D, 8 bit, phase, and what is no MR."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmct.errors import DataError
from fmct.lesions.normalisation_table import main, normalisation_table
from fmct.normalise import KINDS, Normalisation
from tests.lesions.brains import ball

SHAPE = (10, 20, 18)  # z, y, x


def magnitudes(seed: int, scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return scale * np.where(ball(SHAPE, (1.0,) * 3, 8.0), random.normal(100, 12, SHAPE), random.random(SHAPE))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    affine = np.diag([0.5, 0.5, 3.0, 1.0])
    echoes = np.stack([magnitudes(seed, 1e-4).T for seed in range(3)], axis=-1)
    stacks = {
        "echoes": echoes.astype(np.float32),
        "eight": np.clip(magnitudes(5), 0, 255).T.astype(np.uint8),
        "phase": np.random.default_rng(0).integers(-2048, 2048, SHAPE).T.astype(np.int16),
        "thin": magnitudes(6)[:1].T.astype(np.float32),
    }
    for name, voxels in stacks.items():
        nib.Nifti1Image(voxels, affine).to_filename(tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_every_volume_has_a_row_and_every_kind_its_values(files: Path) -> None:
    rows = normalisation_table(files)
    assert [(row.file, row.frame) for row in rows] == [
        *(("echoes.nii.gz", frame) for frame in range(3)), ("eight.nii.gz", None), ("phase.nii.gz", None),
        ("thin.nii.gz", None),
    ]  # fmt: skip
    good = rows[:4]
    assert all(row.shape == SHAPE and row.spacing_mm == (3.0, 0.5, 0.5) for row in good)
    assert all(set(row.values) == set(KINDS) and not row.refused for row in good)
    echo = magnitudes(1, 1e-4).astype(np.float32)
    curve = Normalisation("percentile").fitted(echo)
    wanted = np.percentile(curve.of_array(echo)[echo > echo.mean(dtype=np.float64)], [1, 50, 99])
    assert rows[1].values["percentile"] == pytest.approx(wanted.tolist(), abs=1e-4)
    for row in good:  # a tiny scale and 8 bit end on the same one
        assert row.values["nyul"][0] == pytest.approx(0, abs=0.05)
        assert row.values["nyul"][2] == pytest.approx(1, abs=0.05)
    phase, thin = rows[4:]
    assert phase.values == thin.values == {}
    assert "looks like a CT, a phase image" in phase.refused
    assert thin.refused.startswith("too-few-slices")


def test_the_command_prints_it(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(files)]) == 0
    text = capsys.readouterr().out
    assert "| echoes.nii.gz, volume 2 | 10×20×18 | 3×0.5×0.5 |" in text
    assert text.count("refused (1)") == len(KINDS)
    assert "(1) phase.nii.gz: " in text
    (files / "empty").mkdir()
    assert main([str(files / "empty")]) == 2
    with pytest.raises(DataError, match="no MR file"):
        normalisation_table(files / "empty")

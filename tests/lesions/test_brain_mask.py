from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmct.errors import ConfigError, DataError
from fmct.lesions.brain_mask import BrainMaskConfig, brain_mask, found_brain, otsu
from fmct.volume import Volume
from tests.lesions.brains import ball, volume

SHAPE, SPACING = (16, 48, 48), (3.0, 1.0, 1.0)
BRAIN, SKULL = ball(SHAPE, SPACING, 15.0), ball(SHAPE, SPACING, 18.0)
SCALP = ball(SHAPE, SPACING, 20.5) & ~SKULL


def head(*, bridge: bool = True) -> np.ndarray:
    """Return a brain with a dark hole, dark skull, bright scalp, and a thin bright bridge between the two."""
    values = np.random.default_rng(0).normal(4, 2, SHAPE)
    values[BRAIN | SCALP] += 100
    values[ball(SHAPE, SPACING, 3.0)] = 4
    if bridge:
        values[8, 24, 24:] = np.maximum(values[8, 24, 24:], 104)
    return np.abs(values)


def write_mask(path: Path, mask: np.ndarray, like: Volume, shift: float = 0.0) -> Path:
    affine = like.affine[:, [2, 1, 0, 3]].copy()
    affine[0, 3] += shift
    nib.Nifti1Image(mask.astype(np.uint8).transpose(2, 1, 0), affine).to_filename(path)
    return path


def test_the_brain_is_found_without_scalp_and_with_its_holes() -> None:
    found = brain_mask(volume(head(), SPACING))
    assert 2 * np.count_nonzero(found & BRAIN) / (found.sum() + BRAIN.sum()) > 0.95
    assert not (found & SCALP)[:, :24].any()
    assert found[ball(SHAPE, SPACING, 3.0)].all()


def test_otsu_is_the_threshold_with_the_largest_variance_between_classes() -> None:
    values = np.rint(head() * 2)
    high = np.percentile(values, 99.9)
    best, most = 0.0, -1.0
    for edge in np.linspace(values.min(), high, 257)[1:-1]:
        low, up = np.minimum(values[values < edge], high), np.minimum(values[values >= edge], high)
        between = low.size * up.size * (low.mean() - up.mean()) ** 2 if low.size and up.size else 0.0
        if between > most:
            best, most = float(edge), between
    # Classes are what counts: between two values of the data every threshold is as good.
    assert np.count_nonzero((values > otsu(values)) != (values > best)) < 0.001 * values.size
    assert otsu(np.full((3, 3), 5.0)) == 5.0


def test_a_given_mask_is_read_on_the_scans_grid_in_any_orientation(tmp_path: Path) -> None:
    scan = volume(head(), SPACING)
    mask = ball(SHAPE, SPACING, 12.0, (3, 2, -4))
    path = write_mask(tmp_path / "brain.nii.gz", mask, scan)
    np.testing.assert_array_equal(brain_mask(scan, path), mask)
    flipped = scan.oriented("RAS")
    np.testing.assert_array_equal(brain_mask(flipped, path), Volume(mask, scan.affine).oriented("RAS").voxels)


def test_masks_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    """B.13.14 and 26: an empty mask, and one on another grid, name the file."""
    scan = volume(head(), SPACING)
    for name, mask, shift, error in (
        ("empty", np.zeros(SHAPE), 0.0, "the brain mask is empty"),
        ("short", BRAIN[1:], 0.0, "lies on another grid"),
        ("moved", BRAIN, 2.0, r"2\.0 voxels off"),
    ):
        path = write_mask(tmp_path / f"{name}.nii", mask, scan, shift)
        with pytest.raises(DataError, match=rf"{name}\.nii: .*{error}"):
            brain_mask(scan, path)


def test_series_without_a_brain_are_refused_by_name() -> None:
    noise = np.abs(np.random.default_rng(0).normal(0, 1, SHAPE))
    with pytest.raises(DataError, match=r"a\.nii: brain mask: nothing in this series stands out"):
        found_brain(noise, np.asarray(SPACING), where="a.nii")
    with pytest.raises(DataError, match=r"a\.nii: brain mask: .*NaN"):
        found_brain(np.full(SHAPE, np.nan), np.asarray(SPACING), where="a.nii")
    with pytest.raises(ConfigError, match="not negative"):
        BrainMaskConfig(opening_mm=-1)

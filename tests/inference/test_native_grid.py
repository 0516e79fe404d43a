"""Maps go back to the file's own voxels, whatever its axes: N5 (affine, spacing, orientation) and G5."""

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fmct.errors import DataError
from fmct.inference.native_grid import SourceGrid, source_grid, to_scan, to_source, write_nifti
from fmct.io import read_volume
from fmct.preprocess import InputSpec, Preprocessing
from fmct.tiling import plan_tiles
from fmct.windows import Window

SPACING = (2.5, 1.25, 1.5)  # along the file's own axes
SHAPE = (22, 30, 26)
ORIENTATIONS = [
    "".join(letters)
    for axes in permutations(("LR", "AP", "IS"))
    for letters in product(*axes)
    if letters[0] in "LAS"  # half of the 48: the other half are their mirror images
]


def file_of(path: Path, orientation: str, *, turn: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Write a CT whose file axes point along `orientation` (nibabel's order), turned by degrees about z; a marker is
    brighter than the rest. Return (values, affine) as nibabel has them.
    """
    rng = np.random.default_rng(5)
    values = rng.integers(-100, 80, SHAPE).astype(np.int16)
    values[:, :, :4] = -1000
    values[5:9, 20:26, 15:19] = 900
    affine = nib.orientations.inv_ornt_aff(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt(tuple("RAS")), nib.orientations.axcodes2ornt(tuple(orientation))
        ),
        SHAPE,
    )
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    rotation = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    affine = rotation @ affine @ np.diag([*SPACING, 1.0])
    affine[:3, 3] += (11.0, -7.0, 5.0)
    image = nib.Nifti1Image(values, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)
    return values, nib.load(path).affine


def back(path: Path, *, spacing_mm: tuple[float, float, float]) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return (mask file as written, soft map) of the marker: read, brought to a model's grid, and back again."""
    volume = read_volume(path)
    preprocessing = Preprocessing((Window(-1000, 1000),), InputSpec(size_voxels=(8, 8, 8), spacing_mm=spacing_mm))
    scan = preprocessing.scan(volume)
    grid = plan_tiles(scan.shape, scan.affine, size=(8, 8, 8), spacing_mm=spacing_mm, overlap=0)
    ranges = [np.arange(n) for n in grid.shape]
    points = np.stack(np.meshgrid(*ranges, indexing="ij"), -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = marker(volume, points)
    source = source_grid(
        scan.shape, scan.affine, np.array(volume.facts["original_affine"]), volume.facts, nifti=str(path)
    )
    soft = to_scan(torch.from_numpy(inside.astype(np.float32))[None], grid, scan.shape)
    values = to_source(soft[0], scan.affine, source)
    out = path.with_name("mask.nii.gz")
    write_nifti(out, (values >= 0.5).astype(np.uint8), source)
    return nib.load(out), values


def marker(volume: object, points: np.ndarray) -> np.ndarray:
    """Return whether RAS points lie in the marker, as the canonical volume shows it."""
    from fmct.volume import Volume

    assert isinstance(volume, Volume)
    bright = np.argwhere(volume.voxels > 500)
    low, high = bright.min(0) - 0.5, bright.max(0) + 0.5
    index = volume.index(points)
    return ((index >= low) & (index <= high)).all(axis=-1)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_n5_g5_a_mask_returns_to_the_files_axes_and_lies_on_the_marker(tmp_path: Path, orientation: str) -> None:
    """N5, G5: same affine, shape and zooms; the marker's centre within half a voxel, in any orientation."""
    values, affine = file_of(tmp_path / "ct.nii.gz", orientation)
    mask, _ = back(tmp_path / "ct.nii.gz", spacing_mm=(1.0, 1.0, 1.0))
    assert np.array_equal(mask.affine, affine)
    assert mask.shape == values.shape
    assert mask.header.get_zooms() == nib.load(tmp_path / "ct.nii.gz").header.get_zooms()
    found, wanted = np.asanyarray(mask.dataobj) > 0, values > 500
    assert np.abs(np.argwhere(found).mean(0) - np.argwhere(wanted).mean(0)).max() < 0.5
    assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.8


def test_an_oblique_scan_keeps_its_affine_units_and_codes(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    values, affine = file_of(path, "LPS", turn=12.0)
    image = nib.load(path)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=2)
    nib.save(nib.Nifti1Image(values, None, image.header), path)
    mask, soft = back(path, spacing_mm=(2.0, 2.0, 2.0))
    header = mask.header
    assert np.allclose(mask.affine, affine, atol=1e-6)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 1)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert header.get_data_dtype() == np.uint8
    assert soft.shape == SHAPE[::-1]
    found = np.argwhere(np.asanyarray(mask.dataobj) > 0).mean(0)
    assert np.abs(found - np.argwhere(values > 500).mean(0)).max() < 0.5


def test_a_scan_in_metres_comes_back_in_metres(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    values, affine = file_of(path, "RAS")
    scaled = np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ affine
    image = nib.Nifti1Image(values, scaled)
    image.header.set_xyzt_units("meter")
    image.set_qform(scaled, code=1)
    nib.save(image, path)
    mask, _ = back(path, spacing_mm=(1.0, 1.0, 1.0))
    assert np.allclose(mask.affine, scaled, rtol=1e-6)
    assert mask.header.get_xyzt_units()[0] == "meter"


def test_the_models_values_are_interpolated_linearly_between_its_voxels() -> None:
    affine = np.diag([3.0, 1.0, 1.0, 1.0])
    grid = plan_tiles((10, 12, 14), affine, size=(8, 8, 8), spacing_mm=(1.5, 2.0, 1.0), overlap=0)
    z, y, x = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    world = np.stack([z, y, x], -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    ramp = torch.from_numpy((world @ np.array([0.02, 0.03, -0.01]) + 0.4).astype(np.float32))
    found = to_scan(torch.stack([ramp, 2 * ramp]), grid, (10, 12, 14))
    places = np.stack(np.meshgrid(*(np.arange(n) for n in (10, 12, 14)), indexing="ij"), -1) * [3.0, 1.0, 1.0]
    wanted = places @ np.array([0.02, 0.03, -0.01]) + 0.4
    assert np.abs(found[0] - wanted)[1:-1, 1:-1].max() < 1e-5
    assert np.allclose(found[1], 2 * found[0])


def test_a_store_entry_goes_back_by_its_original_affine() -> None:
    canonical = np.diag([2.0, -1.0, -1.5, 1.0])[[2, 1, 0, 3]]
    original = np.array([[0, 0, 1.5, -36.0], [0, 1.0, 0, -29.0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    source = source_grid((20, 30, 25), canonical, original, {})
    values = np.random.default_rng(0).random((20, 30, 25)).astype(np.float32)
    placed = to_source(values, canonical, source)
    assert np.array_equal(placed, values[:, ::-1, ::-1])
    assert np.array_equal(source.affine, original)


def test_grids_that_are_not_the_same_voxels_are_refused(tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6), np.float32)
    with pytest.raises(DataError, match=r"are not on the scan's \(4, 5, 7\)"):
        to_source(values, np.eye(4), SourceGrid((4, 5, 7), np.eye(4)))
    moved = np.eye(4)
    moved[0, 3] = 0.3
    with pytest.raises(DataError, match=r"0\.30 voxels apart"):
        to_source(values, np.eye(4), SourceGrid((4, 5, 6), moved))
    file_of(tmp_path / "ct.nii.gz", "RAS")
    with pytest.raises(DataError, match="it changed since"):
        source_grid((9, 9, 9), np.eye(4), np.eye(4), {}, nifti=str(tmp_path / "ct.nii.gz"))


def test_a_mended_scan_keeps_its_regular_grid_and_says_so() -> None:
    source = source_grid((9, 8, 7), np.eye(4), 2 * np.eye(4), {"mended": ["gantry-tilt"]})
    assert source.shape == (9, 8, 7)
    assert "gantry-tilt" in source.note

"""Blobs at known world points come back in their place, whatever the file's grid; geometry agrees with SimpleITK."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from fmct.io import ReadPolicy, read_volume
from tests.io.dicom_writer import AXIAL, CORONAL, SAGITTAL, normal, slice_points, stacked, write_enhanced, write_series
from tests.io.references_blobs import BLOBS_RAS, distances_in_voxels, hu_at, on_grid

FLIP = np.array([-1.0, -1.0, 1.0])
MEND = ReadPolicy(tilt="resample", spacing="resample")


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    a, b, c = np.radians(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


OBLIQUE = tuple(rotation((20.0, -15.0, 30.0))[:, :2].T.ravel())
DECUBITUS = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0)
FEET_FIRST = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
FLIPPED = (0.0, -1.0, 0.0, -1.0, 0.0, 0.0)


def phantom_series(folder, orientation, spacing, heights, *, shape=(52, 56), drift=(0.0, 0.0, 0.0), **options):
    """Write the blob phantom as DICOM, centred on the world's origin; `drift` moves slices per mm of height."""
    middle = (shape[1] - 1) / 2 * spacing[1] * np.array(orientation[:3]) + (shape[0] - 1) / 2 * spacing[0] * np.array(
        orientation[3:]
    )
    heights = np.asarray(heights) - np.mean(heights)
    positions = stacked(-middle, orientation, heights) + heights[:, None] * np.array(drift)
    volume = np.stack([hu_at(slice_points(shape, p, orientation, spacing) * FLIP) for p in positions])
    write_series(folder, volume, positions, orientation=orientation, spacing=spacing, **options)
    return volume, positions


@pytest.mark.parametrize(
    ("orientation", "spacing", "step"),
    [
        (AXIAL, (2.0, 2.0), 2.0),
        (AXIAL, (1.9, 1.7), 4.0),
        (CORONAL, (2.0, 2.0), 2.5),
        (SAGITTAL, (2.0, 2.0), 2.5),
        (OBLIQUE, (2.0, 1.8), 3.0),
        (DECUBITUS, (2.0, 2.0), 3.0),
        (FEET_FIRST, (2.0, 2.0), 3.0),
        (FLIPPED, (2.0, 2.0), 3.0),
    ],
    ids=["axial", "anisotropic", "coronal", "sagittal", "oblique", "decubitus", "feet-first", "flipped"],
)
def test_dicom_blobs_are_where_they_were_put(tmp_path, orientation, spacing, step):
    phantom_series(tmp_path, orientation, spacing, np.arange(0, 92, step))
    volume = read_volume(tmp_path)
    assert volume.orientation == "SPL"
    assert volume.voxels.dtype == np.int16
    assert distances_in_voxels(volume).max() < 0.1
    sides = {round(float(s), 6) for s in volume.spacing}
    assert sides == {round(float(s), 6) for s in (*spacing, step)}


def test_dicom_agrees_with_simpleitk_in_values_and_positions(tmp_path):
    phantom_series(tmp_path, OBLIQUE, (1.9, 1.7), np.arange(0, 80, 3.0), name="{:03d}.dcm")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = sitk.ReadImage(names)
    volume = read_volume(tmp_path)
    rng = np.random.default_rng(0)
    for index in rng.integers(0, volume.shape, size=(50, 3)):
        point = volume.world(index) * FLIP
        there = image.TransformPhysicalPointToContinuousIndex([float(v) for v in point])
        assert np.allclose(there, np.rint(there), atol=1e-4)
        assert image[tuple(round(v) for v in there)] == volume.voxels[tuple(index)]


def test_file_order_and_names_do_not_matter(tmp_path):
    values, _ = phantom_series(tmp_path / "a", AXIAL, (2.0, 2.0), np.arange(0, 90, 3.0), name="{:03d}.dcm")
    phantom_series(tmp_path / "b" / "deeper", AXIAL, (2.0, 2.0), np.arange(0, 90, 3.0), name="x{}_no_extension")
    first, second = read_volume(tmp_path / "a"), read_volume(tmp_path / "b")
    assert np.array_equal(first.voxels, second.voxels)
    assert np.array_equal(first.affine, second.affine)
    assert np.array_equal(first.voxels, values)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("degrees", [18.5, -25.0])
def test_gantry_tilt_is_undone_in_place(tmp_path, orientation, degrees):
    drift = np.tan(np.radians(degrees)) * np.array(orientation[3:])
    phantom_series(tmp_path, orientation, (2.0, 2.0), np.arange(0, 90, 3.0), drift=drift, shape=(60, 56))
    volume = read_volume(tmp_path, policy=ReadPolicy(tilt="resample"))
    axes = volume.affine[:3, :3] / volume.spacing
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert volume.orientation == "SPL"
    assert distances_in_voxels(volume).max() < 0.1
    assert volume.facts["mended"] == ["gantry-tilt"]


def test_uneven_slices_are_interpolated_at_their_true_positions(tmp_path):
    heights = np.concatenate([np.arange(0, 40, 2.5), 39.0 + np.array([0.7]), np.arange(42, 92, 4.0)])
    phantom_series(tmp_path, AXIAL, (2.0, 2.0), heights)
    volume = read_volume(tmp_path, policy=ReadPolicy(spacing="resample"))
    assert volume.spacing[0] == pytest.approx(2.5, rel=0.02)
    assert distances_in_voxels(volume).max() < 0.1


def test_tilt_and_uneven_steps_together(tmp_path):
    heights = np.concatenate([np.arange(0, 42, 3.0), 39.0 + np.arange(1.0, 52.0, 5.0)])
    drift = np.tan(np.radians(12.0)) * np.array(OBLIQUE[3:])
    phantom_series(tmp_path, OBLIQUE, (2.0, 1.9), heights, drift=drift, shape=(58, 56))
    volume = read_volume(tmp_path, policy=MEND)
    assert distances_in_voxels(volume).max() < 0.1
    assert volume.facts["mended"] == ["gantry-tilt", "non-uniform-spacing"]


def test_a_source_slice_on_a_grid_plane_keeps_its_values(tmp_path):
    heights = np.concatenate([np.arange(0, 45, 3.0), np.arange(48, 96, 6.0)])
    values, _ = phantom_series(tmp_path, AXIAL, (2.0, 2.0), heights)
    volume = read_volume(tmp_path, policy=ReadPolicy(spacing="resample"))
    assert np.array_equal(volume.voxels[:15], values[:15])
    assert np.array_equal(volume.voxels[16::2], values[15:])
    between = (values[15].astype(float) + values[16]) / 2
    assert np.abs(volume.voxels[17] - between).max() <= 0.5


def test_enhanced_multi_frame_is_read_frame_by_frame(tmp_path):
    shape, spacing = (52, 56), (2.0, 1.9)
    heights = np.arange(0, 90, 3.0)
    positions = stacked((-52.0, -51.0, -43.5), AXIAL, heights)[::-1]
    volume = np.stack([hu_at(slice_points(shape, p, AXIAL, spacing) * FLIP) for p in positions])
    for syntax in ("explicit", "rle"):
        path = write_enhanced(tmp_path / syntax, volume, positions, spacing=spacing, syntax=syntax)
        read = read_volume(path)
        assert np.array_equal(read.voxels, volume[::-1])
        assert distances_in_voxels(read).max() < 0.1


NIFTI_AXES = {
    "RAS": np.diag([2.0, 2.0, 2.0]),
    "LPS": np.diag([-2.0, -2.0, 2.0]),
    "LAS": np.diag([-2.0, 2.0, 2.0]),
    "PIR": np.array([[0.0, 0.0, 2.0], [-2.0, 0.0, 0.0], [0.0, -2.5, 0.0]]),
    "anisotropic": np.diag([-1.8, -1.8, 4.0]),
    "oblique": rotation((20.0, -15.0, 30.0)) @ np.diag([2.0, 2.0, 2.5]),
}


def nifti_affine(axes: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ (np.array(shape) - 1) / 2
    return affine


def write_nifti(path, axes, *, dtype=np.int16):
    shape = tuple(int(np.ceil(96 / np.linalg.norm(axes[:, i]))) for i in range(3))
    affine = nifti_affine(axes, shape)
    image = nib.Nifti1Image(on_grid(shape, affine).astype(dtype), affine)
    nib.save(image, path)
    return image


@pytest.mark.parametrize("axes", NIFTI_AXES.values(), ids=NIFTI_AXES.keys())
def test_nifti_blobs_are_where_they_were_put(tmp_path, axes):
    write_nifti(tmp_path / "scan.nii.gz", axes)
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert volume.orientation == "SPL"
    assert distances_in_voxels(volume).max() < 0.1


def test_nifti_agrees_with_simpleitk(tmp_path):
    write_nifti(tmp_path / "scan.nii", NIFTI_AXES["oblique"])
    image = sitk.ReadImage(str(tmp_path / "scan.nii"))
    volume = read_volume(tmp_path / "scan.nii")
    for index in np.random.default_rng(1).integers(0, volume.shape, size=(50, 3)):
        there = image.TransformPhysicalPointToContinuousIndex([float(v) for v in volume.world(index) * FLIP])
        assert np.allclose(there, np.rint(there), atol=1e-3)
        assert image[tuple(round(v) for v in there)] == volume.voxels[tuple(index)]


def test_a_sheared_nifti_is_a_tilt(tmp_path):
    axes = np.diag([2.0, 2.0, 3.0])
    axes[1, 2] = 3.0 * np.tan(np.radians(15.0))
    image = write_nifti(tmp_path / "scan.nii.gz", axes)
    image.header.set_qform(None, code=0)
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz", policy=ReadPolicy(tilt="resample"))
    assert distances_in_voxels(volume).max() < 0.1


@pytest.mark.parametrize("extension", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_nrrd_and_mha_blobs_are_where_they_were_put(tmp_path, extension, compressed):
    direction = rotation((10.0, 5.0, -20.0))
    shape, spacing = (50, 48, 32), np.array([2.0, 2.0, 3.0])
    lps = np.eye(4)
    lps[:3, :3] = direction * spacing
    lps[:3, 3] = -lps[:3, :3] @ (np.array(shape) - 1) / 2
    values = on_grid(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    image = sitk.GetImageFromArray(values.T.astype(np.int16))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / f"scan.{extension}"), useCompression=compressed)
    volume = read_volume(tmp_path)
    assert volume.orientation == "SPL"
    assert distances_in_voxels(volume).max() < 0.1


def test_the_blob_finder_sees_a_shift_of_a_fifth_of_a_voxel(tmp_path):
    write_nifti(tmp_path / "scan.nii.gz", NIFTI_AXES["RAS"])
    volume = read_volume(tmp_path / "scan.nii.gz")
    moved = volume.affine.copy()
    moved[:3, 3] += [0.4, 0.0, 0.0]
    shifted = type(volume)(volume.voxels, moved)
    assert distances_in_voxels(shifted).max() == pytest.approx(0.2, abs=0.03)
    assert len(BLOBS_RAS) == 4


def test_the_normal_of_the_writer_is_the_cross_product():
    assert np.allclose(normal(AXIAL), [0, 0, 1])
    assert np.allclose(normal(CORONAL), [0, 1, 0])

"""Masks from files: NIfTI, DICOM-SEG and RTSTRUCT become one thing, a Volume of 0 and 1 on a known grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from fmct.errors import DataError
from fmct.shapes import Triple
from fmct.volume import CANONICAL, Volume

SUFFIXES = (".nii", ".nii.gz", ".dcm")
_MOST_LABELS = 256
_DICM = slice(128, 132)  # where a DICOM file says that it is one
_SEG, _RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"


@dataclass(frozen=True)
class MaskGrid:
    """A voxel grid: shape (D, H, W) and (4, 4) affine, voxel (z, y, x) → RAS mm."""

    shape: Triple
    affine: np.ndarray


def read_mask(
    path: Path,
    orientation: str = CANONICAL,
    *,
    grid: MaskGrid | None = None,
    labels: Sequence[int] | None = None,
    names: Sequence[str] = (),
) -> Volume:
    """Return a mask as Volume of float32 0 or 1, on the file's own grid in `orientation`.

    grid: where contours (RTSTRUCT) are filled in; they have no grid of their own. labels: which labels of a NIfTI mask
    are the lesion (None: any but 0). names: which segments or contours of a DICOM file (empty: all of them, joined).
    Raises DataError when the file is not a mask, or lacks a label or name that was asked for.
    """
    path = Path(path)
    if is_dicom(path):
        return _read_dicom(path, grid, names).oriented(orientation)
    inside, affine = _read_nifti(path, labels)
    return Volume(inside, affine, "mask", "fraction").oriented(orientation)


def is_dicom(path: Path) -> bool:
    """Return whether a file says that it is DICOM. Raises DataError when it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(_DICM.stop)
    except OSError as error:
        raise DataError(f"{path}: not readable as a mask ({error.strerror or error}).") from None
    if not head:
        raise DataError(f"{path}: not readable as a mask (the file is empty).")
    return head[_DICM] == b"DICM"


def _read_dicom(path: Path, grid: MaskGrid | None, names: Sequence[str]) -> Volume:
    from fmct.io.dicom_rtstruct import read_rtstruct, sop_class
    from fmct.io.dicom_seg_read import read_segmentation

    kind = sop_class(path)
    if kind == _SEG:
        return read_segmentation(path, names=names)
    if kind != _RTSTRUCT:
        raise DataError(f"{path}: expected a DICOM segmentation or an RTSTRUCT, got SOP class {kind or 'none'}.")
    if grid is None:
        raise DataError(f"{path}: contours have no voxel grid; name the series that they were drawn on.")
    return read_rtstruct(path, grid.shape, grid.affine, names=names)


def _read_nifti(path: Path, wanted: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (float32 0 or 1 (D, H, W), affine zyx → RAS mm)."""
    try:
        image = nib.load(path)  # type: ignore[attr-defined]
        voxels = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
        affine = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not readable as a mask ({type(error).__name__}: {error}).") from None
    if voxels.ndim > 3 and voxels.size == np.prod(voxels.shape[:3]):
        voxels = voxels.reshape(voxels.shape[:3])
    present = np.unique(voxels)
    whole = np.isfinite(present).all() and np.array_equal(present, np.rint(present))
    if voxels.ndim != 3 or not whole or present.min() < 0 or len(present) > _MOST_LABELS:
        raise DataError(
            f"{path}: expected a mask (three axes, whole labels from 0 on, at most {_MOST_LABELS} of them); got shape "
            f"{voxels.shape}, values {present.min():g} to {present.max():g}. Point to masks only, or name them in a "
            "CSV."
        )
    inside = voxels > 0 if wanted is None else np.isin(voxels, list(_wanted(path, present, wanted)))
    return np.ascontiguousarray(inside.T, dtype=np.float32), affine[:, [2, 1, 0, 3]]


def _wanted(path: Path, present: np.ndarray, wanted: Sequence[int]) -> Sequence[int]:
    """Return the labels that are the lesion; [] stands for the only one there is."""
    if wanted:
        return wanted
    lesion = [int(label) for label in present if label > 0]
    if len(lesion) > 1:
        listed = ", ".join(map(str, lesion[:8]))
        raise DataError(
            f"{path}: expected a mask of 0 and one other label; got the labels {listed}. Say which of them are the "
            "lesion (mask_labels=[…])."
        )
    return lesion

"""Maps from a model's grid back to the grid, orientation and header of the scan that they are of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from fmct.axes import linear_axis
from fmct.errors import DataError
from fmct.resample import resample
from fmct.shapes import Triple
from fmct.tiling import Grid
from fmct.volume import Volume, orientation_of

_SAME_PLACE_VOXELS = 0.05


@dataclass(frozen=True)
class SourceGrid:
    """The grid of a scan as its file has it.

    shape: voxels along (z, y, x) of the file, for DICOM (slice, row, column). affine: (4, 4) → RAS mm. header: of a
    NIfTI file, kept so that units, codes and both forms come back as they were. note: what an output cannot keep.
    """

    shape: Triple
    affine: np.ndarray
    header: nib.Nifti1Header | None = None
    note: str = ""


def source_grid(
    shape: Triple, affine: np.ndarray, original: np.ndarray, facts: Mapping[str, Any], *, nifti: str = ""
) -> SourceGrid:
    """Return the grid of the file behind a series of (D, H, W) `shape` on `affine`.

    original: the file's affine, (slice, row, column) → RAS mm, as the reader found it. nifti: the file itself where it
    is a NIfTI file, for its order and header. A scan that was put on a regular grid when it was read (tilted or
    irregular slices) has no such grid as an array: then `affine`, and a note. Raises DataError when a NIfTI file is no
    longer the one that was read.
    """
    if facts.get("mended"):
        note = f"its slices were regularised when it was read ({', '.join(facts['mended'])}): maps lie on that grid"
        return SourceGrid(shape, affine, note=note)
    if nifti:
        return _nifti_grid(shape, affine, Path(nifti))
    original = np.asarray(original, dtype=np.float64)
    return SourceGrid(_reordered(_empty(shape, affine), original).shape, original)


def to_scan(maps: torch.Tensor, grid: Grid, shape: Triple) -> np.ndarray:
    """Return (K, D, H, W) float32 maps on a series' level 0, of `shape`, from (K, d, h, w) maps on a model's grid.

    Linear between the grid's voxels; outside the grid it is 0.
    """
    axes = []
    for axis, length in enumerate(shape):
        step = grid.native_mm[axis] / grid.spacing_mm[axis]
        axes.append(linear_axis((np.arange(length) - grid.origin[axis]) * step, grid.shape[axis]))
    found = np.empty((len(maps), *shape), dtype=np.float32)
    for part, out in zip(maps, torch.from_numpy(found), strict=True):
        if maps.device.type == "cpu":
            resample(part, axes, air=0.0, out=out)
        else:  # one map at a time on the device
            out.copy_(resample(part, axes, air=0.0))
    return found


def to_source(values: np.ndarray, affine: np.ndarray, source: SourceGrid) -> np.ndarray:
    """Return voxels (D, H, W) that lie on `affine` as the file orders its own; no value changes.

    Raises DataError when the two grids are not the same voxels.
    """
    placed = _reordered(Volume(values, affine, "mask", "fraction"), source.affine)
    corner = np.asarray(source.shape) - 1
    apart = np.abs(placed.index(source.affine[:3, :3] @ corner + source.affine[:3, 3]) - corner).max()
    apart = max(float(apart), float(np.abs(placed.index(source.affine[:3, 3])).max()))
    if placed.shape != tuple(source.shape) or apart > _SAME_PLACE_VOXELS:
        raise DataError(
            f"the maps, {placed.shape} voxels, are not on the scan's {tuple(source.shape)}: {apart:.2f} voxels apart."
        )
    return placed.voxels


def write_nifti(path: Path, values: np.ndarray, source: SourceGrid) -> None:
    """Write voxels (z, y, x) in the file's order, uint8 or float32, as NIfTI with the scan's affine and spacing."""
    header = source.header.copy() if source.header is not None else None
    affine = None
    if header is None:
        affine = source.affine[:, [2, 1, 0, 3]]
    else:
        header.set_slope_inter(1, 0)
        for field in ("cal_min", "cal_max"):
            header[field] = 0
        header["descrip"] = b"fmct predict; research use only"
        header.extensions.clear()
    image = nib.Nifti1Image(values.transpose(2, 1, 0), affine, header)  # of a C-ordered array as it lies in a file
    image.set_data_dtype(values.dtype)
    if header is None:
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)


def _nifti_grid(shape: Triple, affine: np.ndarray, path: Path) -> SourceGrid:
    image = nib.load(path)  # type: ignore[attr-defined]
    header: Any = image.header  # type: ignore[attr-defined]
    stated = np.asarray(image.affine, dtype=np.float64)[:, [2, 1, 0, 3]]  # type: ignore[attr-defined]
    stated[:3] *= {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)
    expected = _reordered(_empty(shape, affine), stated).shape
    stored = tuple(int(n) for n in header["dim"][1:4])[::-1]
    if expected != stored:
        raise DataError(f"{path.name}: its header says {stored} voxels, and {expected} were read: it changed since.")
    return SourceGrid(expected, stated, header if type(header) is nib.Nifti1Header else None)


def _empty(shape: Triple, affine: np.ndarray) -> Volume:
    return Volume(np.broadcast_to(np.False_, shape), affine, "mask", "fraction")


def _reordered(volume: Volume, affine: np.ndarray) -> Volume:
    return volume.oriented(orientation_of(affine))

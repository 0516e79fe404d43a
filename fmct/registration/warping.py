"""Volumes and masks on another volume's grid: through world coordinates, and through a displacement where there is one.

A displacement belongs to the fixed grid: point p of the fixed scan lies at p + u(p) in the moving one, RAS mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fmct import pyramid
from fmct.errors import DataError
from fmct.volume import AIR_HU, Volume

_SLAB_VOXELS = 1 << 20  # output voxels whose coordinates are held at a time
_SAME_MM = 1e-3


@dataclass(frozen=True)
class Warped:
    """A volume on the fixed grid. valid: (D, H, W) bool, where the moving scan's field of view reached."""

    volume: Volume
    valid: np.ndarray


def same_grid(a: Sequence[int], a_affine: np.ndarray, b: Sequence[int], b_affine: np.ndarray) -> bool:
    """Return whether two grids (shape, (4, 4) affine) are one: equal shapes, corners within a thousandth of a mm."""
    if tuple(a) != tuple(b):
        return False
    corners = np.array([[z, y, x, 1] for z in (0, 1) for y in (0, 1) for x in (0, 1)]) * [*a, 1]
    return bool(np.abs(corners @ (np.asarray(a_affine) - np.asarray(b_affine)).T).max() <= _SAME_MM)


def check_same_grid(moving: Volume, fixed: Volume, what: str) -> None:
    """Raise DataError that names both grids when they are not one."""
    if not same_grid(moving.shape, moving.affine, fixed.shape, fixed.affine):
        raise DataError(
            f"{what}: expected both volumes on one grid; got shape {fixed.shape} with affine {fixed.affine.tolist()}, "
            f"and shape {moving.shape} with affine {moving.affine.tolist()}. Bring one onto the other's grid "
            "(resample=true)."
        )


def warp(moving: Volume, fixed: Volume, field_mm: np.ndarray | None = None, *, outside: float | None = None) -> Warped:
    """Return `moving` on the grid of `fixed`, interpolated linearly in world coordinates, where p + field_mm(p) lies.

    Equal grids and no field return the voxels unchanged. A moving scan finer than the grid is averaged down first.
    Within half a voxel of its edge the outermost voxel counts; beyond it is `outside` (default: air for CT, else 0).
    CT stays int16, all else is float32. Raises DataError for a field that is not (D, H, W, 3) on the fixed grid.
    """
    if field_mm is not None and field_mm.shape != (*fixed.shape, 3):
        raise DataError(f"a displacement of shape {field_mm.shape} does not belong to the fixed grid {fixed.shape}.")
    if field_mm is None and same_grid(moving.shape, moving.affine, fixed.shape, fixed.affine):
        return Warped(moving, np.ones(fixed.shape, dtype=bool))
    levels = pyramid.build(moving.voxels, moving.spacing.tolist())
    number = pyramid.choose_level(moving.spacing.tolist(), [f for f, _ in levels], fixed.spacing.tolist())
    factor, voxels = levels[number]
    fill = outside if outside is not None else (AIR_HU if moving.modality == "CT" else 0)
    image = np.empty(fixed.shape, dtype=np.float32)
    valid = np.empty(fixed.shape, dtype=bool)
    planes = max(1, _SLAB_VOXELS // (fixed.shape[1] * fixed.shape[2]))
    source = voxels.astype(np.float32)
    for first in range(0, fixed.shape[0], planes):
        part = slice(first, min(first + planes, fixed.shape[0]))
        index = moving_index(moving, fixed, part, field_mm)
        inside = ((index >= -0.5 - 1e-6) & (index <= np.array(moving.shape) - 0.5 + 1e-6)).all(axis=-1)
        at = np.moveaxis(pyramid.level_index(index, factor), -1, 0)
        image[part] = np.where(inside, ndimage.map_coordinates(source, at, order=1, mode="nearest"), fill)
        valid[part] = inside
    whole = moving.voxels.dtype == np.int16
    result = np.rint(image).astype(np.int16) if whole else image
    return Warped(Volume(result, fixed.affine.copy(), moving.modality, moving.units, moving.facts), valid)


def moving_index(moving: Volume, fixed: Volume, planes: slice, field_mm: np.ndarray | None) -> np.ndarray:
    """Return the fractional voxel index (d, H, W, 3) in `moving` of the fixed grid's voxels of some planes."""
    axes = [np.arange(planes.start, planes.stop), np.arange(fixed.shape[1]), np.arange(fixed.shape[2])]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float64)
    to_moving = np.linalg.solve(moving.affine, fixed.affine)
    index = grid @ to_moving[:3, :3].T + to_moving[:3, 3]
    if field_mm is not None:
        index += field_mm[planes].astype(np.float64) @ np.linalg.inv(moving.affine[:3, :3]).T
    return index


def warp_mask(mask: Volume, fixed: Volume, field_mm: np.ndarray | None = None, *, by: str = "probability") -> Volume:
    """Return a mask on the grid of `fixed`, float32 0 or 1.

    by: `probability` averages and interpolates the mask as shares and takes half and more; `distance` interpolates its
    signed distance and takes what is inside, which on a coarser grid keeps what lies on its voxels' centres however
    thin it is. Neither is nearest-neighbour, which frays thin clots. Raises DataError for another `by` or an unfit
    field.
    """
    if by not in ("probability", "distance"):
        raise DataError(f"by={by!r}: expected probability or distance.")
    inside = mask.voxels > 0.5
    if by == "probability" or not inside.any():
        shares = warp(Volume(inside.astype(np.float32), mask.affine, "mask", "fraction"), fixed, field_mm, outside=0.0)
        return Volume((shares.volume.voxels >= 0.5).astype(np.float32), fixed.affine.copy(), "mask", "fraction")
    depth = signed_distance(inside, mask.spacing)
    # Not averaged down, as a volume would be: the distance is smooth, and its mean would lift the lesion's core.
    index = np.moveaxis(moving_index(mask, fixed, slice(0, fixed.shape[0]), field_mm), -1, 0)
    at = ndimage.map_coordinates(depth, index, order=1, mode="nearest")
    seen = ((index >= -0.5) & (index <= np.array(mask.shape)[:, None, None, None] - 0.5)).all(axis=0)
    return Volume(((at >= 0) & seen).astype(np.float32), fixed.affine.copy(), "mask", "fraction")


def signed_distance(inside: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the distance in mm to a mask's boundary, (D, H, W) float32: positive inside, 0 halfway between voxels."""
    into, out = distance_mm(inside, spacing_mm), distance_mm(~inside, spacing_mm)
    half = float(np.min(spacing_mm)) / 2
    return np.where(inside, into - half, half - out).astype(np.float32)


def distance_mm(inside: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return how far each voxel of a mask is from the nearest one outside it, (D, H, W) float64 mm; 0 outside."""
    return np.asarray(ndimage.distance_transform_edt(inside, sampling=[float(s) for s in spacing_mm]))

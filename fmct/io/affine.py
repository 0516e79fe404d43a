"""Checks on the affine of a file that states one (NIfTI, NRRD, MHA), and its slices as a stack."""

import numpy as np

from fmct.io.refusals import refusal
from fmct.io.stack import Stack

SPACING_RANGE_MM = (0.01, 50.0)
_SHEAR = 1e-3  # cosine between two axes that count as orthogonal


def check_affine(affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise Refusal unless an affine (z, y, x) → mm is finite, not singular, and of plausible spacing and place."""
    if not np.isfinite(affine).all():
        raise refusal("bad-geometry", "the affine of the header is not finite")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((spacing >= SPACING_RANGE_MM[0]) & (spacing <= SPACING_RANGE_MM[1])).all():
        reason = f"voxel spacing {[float(f'{s:.4g}') for s in spacing]} mm (z, y, x) is absurd"
        raise refusal("bad-geometry", reason, spacing_mm=spacing)
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        raise refusal("bad-geometry", "two voxel axes point almost the same way", spacing_mm=spacing)
    if np.abs(affine[:3, 3]).max() > 1e5:
        raise refusal("bad-geometry", "the origin lies more than 100 m away", origin_mm=affine[:3, 3])


def slices_first(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], Stack]:
    """Return (order, stack): the axis order that puts the slice axis first, and the slices in that order.

    The slice axis is z, unless the affine is sheared and another axis is the one that leans on an orthogonal pair.
    Raises Refusal when no two axes are orthogonal.
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(axes.T @ axes)
    orders: tuple[tuple[int, int, int], ...] = ((0, 1, 2), (1, 0, 2), (2, 0, 1))
    for order in orders:
        if cosines[order[1], order[2]] <= _SHEAR:
            break
    else:
        reason = "no two voxel axes are orthogonal: the grid is sheared within its slices"
        raise refusal("bad-geometry", reason, cosines=[cosines[0, 1], cosines[0, 2], cosines[1, 2]])
    stacked = affine[:, [*order, 3]]
    return order, Stack.from_affine(stacked, shape[order[0]])

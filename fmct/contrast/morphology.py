"""Pieces of masks and distances in millimetres, as plain arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage


def pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels of the connected pieces, 0 outside; voxels of each piece, label 1 first)."""
    found: Any = ndimage.label(mask)
    labels, count = found
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]


def distance_mm(mask: np.ndarray, spacing_mm: float | Sequence[float] | np.ndarray) -> np.ndarray:
    """Return how far each voxel of a mask is from what is outside it, float64 mm, 0 outside."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing_mm))


def depth_mm(mask: np.ndarray, spacing_mm: float | Sequence[float] | np.ndarray) -> np.ndarray:
    """Return `distance_mm` of a body where the edges of its slices, not the first and last slice, are outside too."""
    return distance_mm(np.pad(mask, ((0, 0), (1, 1), (1, 1))), spacing_mm)[:, 1:-1, 1:-1]


def near(mask: np.ndarray, spacing_mm: float | Sequence[float] | np.ndarray, reach_mm: float) -> np.ndarray:
    """Return what lies within a distance of a mask, bool."""
    return distance_mm(np.logical_not(mask), spacing_mm) <= reach_mm if mask.any() else mask


def eroded(mask: np.ndarray, spacing_mm: float | Sequence[float] | np.ndarray, radius_mm: float) -> np.ndarray:
    """Return what is further than a radius from everything outside the mask; distances beat balls in time."""
    return distance_mm(mask, spacing_mm) > radius_mm


def opened(mask: np.ndarray, spacing_mm: float | Sequence[float] | np.ndarray, radius_mm: float) -> np.ndarray:
    """Return what a ball of a radius reaches inside the mask."""
    return near(eroded(mask, spacing_mm, radius_mm), spacing_mm, radius_mm)


def grown(mask: np.ndarray, times: int = 1, *, within: np.ndarray | None = None) -> np.ndarray:
    """Return a mask grown `times` by a voxel along each axis, where `within` allows it."""
    return np.asarray(ndimage.binary_dilation(mask, iterations=times, mask=within), dtype=bool)


def zoomed(values: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return (D, H, W) values on a grid with `factors` times the voxels along each axis, linearly between them."""
    result: Any = ndimage.zoom(values, factors, order=1)
    return np.asarray(result)

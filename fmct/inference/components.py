"""Connected components of a predicted mask: the table that goes with a prediction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CONNECTIVITY = 26  # voxels that share a face, an edge or a corner are one component


@dataclass(frozen=True)
class Component:
    """One component. number: its value in a label map, the largest is 1. centroid_mm: RAS, the mean of its voxels."""

    number: int
    voxels: int
    volume_mm3: float
    max_probability: float
    mean_probability: float
    centroid_mm: tuple[float, float, float]


def components(probability: np.ndarray, affine: np.ndarray, *, threshold: float = 0.5) -> list[Component]:
    """Return the components of voxels with probability ≥ `threshold`, the largest volume first.

    probability: (D, H, W) on a grid of (4, 4) `affine` (z, y, x) → RAS mm.
    """
    inside = probability >= threshold
    first, box = _bounds(inside)
    if box is None:
        return []
    labels, count = ndimage.label(inside[box], structure=np.ones((3, 3, 3)))  # type: ignore[misc]
    places = np.argwhere(labels)
    of = np.asarray(labels[tuple(places.T)], dtype=np.int64) - 1
    values = probability[box][tuple(places.T)].astype(np.float64)
    sizes = np.bincount(of, minlength=count)
    means = np.bincount(of, weights=values) / sizes
    highest = np.zeros(count)
    np.maximum.at(highest, of, values)
    sums = np.stack([np.bincount(of, weights=places[:, axis]) for axis in range(3)], axis=1)
    centres = (sums / sizes[:, None] + first) @ affine[:3, :3].T + affine[:3, 3]
    voxel = abs(float(np.linalg.det(affine[:3, :3])))
    order = np.argsort(-sizes, kind="stable")
    return [
        Component(
            number=place,
            voxels=int(sizes[found]),
            volume_mm3=float(sizes[found] * voxel),
            max_probability=float(highest[found]),
            mean_probability=float(means[found]),
            centroid_mm=(float(centres[found][0]), float(centres[found][1]), float(centres[found][2])),
        )
        for place, found in enumerate(order, start=1)
    ]


def _bounds(inside: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...] | None]:
    """Return (first index, box) of the smallest box around a mask; None for an empty one."""
    held = [np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not len(held[0]):
        return np.zeros(3), None
    return np.array([place[0] for place in held]), tuple(slice(place[0], place[-1] + 1) for place in held)


def counted_volume(found: Sequence[Component], *, probability: float, min_volume_mm3: float) -> float:
    """Return the mm³ of the components whose mean probability and volume reach the limits (both included)."""
    return sum(
        part.volume_mm3 for part in found if part.mean_probability >= probability and part.volume_mm3 >= min_volume_mm3
    )

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
    labels, count = ndimage.label(probability >= threshold, structure=np.ones((3, 3, 3)))  # type: ignore[misc]
    if not count:
        return []
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    means = ndimage.mean(probability.astype(np.float64), labels, numbers)
    highest = ndimage.maximum(probability, labels, numbers)
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, numbers)) @ affine[:3, :3].T + affine[:3, 3]
    voxel = abs(float(np.linalg.det(affine[:3, :3])))
    order = np.argsort(-sizes, kind="stable")
    return [
        Component(
            number=place,
            voxels=int(sizes[found]),
            volume_mm3=float(sizes[found] * voxel),
            max_probability=float(highest[found]),
            mean_probability=float(np.asarray(means)[found]),
            centroid_mm=(float(centres[found][0]), float(centres[found][1]), float(centres[found][2])),
        )
        for place, found in enumerate(order, start=1)
    ]


def counted_volume(found: Sequence[Component], *, probability: float, min_volume_mm3: float) -> float:
    """Return the mm³ of the components whose mean probability and volume reach the limits (both included)."""
    return sum(
        part.volume_mm3 for part in found if part.mean_probability >= probability and part.volume_mm3 >= min_volume_mm3
    )

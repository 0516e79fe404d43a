"""What a component of voxels looks like, in millimetres and on its whole 3D shape."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError


@dataclass(frozen=True)
class Shape:
    """Measures of one component.

    sphericity: the second moment of a ball of the same volume over the component's own: 1 for a ball, less for anything
    else. elongation: longest over second longest axis of the inertia ellipsoid; what is finer than the coarsest voxel
    side cannot be told and does not count. length_mm: extent along the longest axis. centre: of mass, voxel index.
    """

    voxels: int
    volume_mm3: float
    sphericity: float
    elongation: float
    length_mm: float
    centre: tuple[float, ...]


def shape_of(index: np.ndarray, spacing_mm: Sequence[float]) -> Shape:
    """Return the measures of a component from its voxel indices (N, 3)."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    count, dimensions = index.shape
    places = index * spacing
    centre = places.mean(axis=0)
    spread = (places - centre).T @ (places - centre) / count
    volume = count * float(spacing.prod())
    values, axes = np.linalg.eigh(spread + np.eye(dimensions) * spacing.max() ** 2 / 12)
    along = (places - centre) @ axes[:, -1]
    length = float(along.max() - along.min() + np.abs(axes[:, -1]) @ spacing)
    return Shape(
        voxels=count,
        volume_mm3=volume,
        sphericity=_ball_moment(volume, dimensions) / float(np.trace(spread) + (spacing**2).sum() / 12),
        elongation=float(math.sqrt(values[-1] / values[-2])),
        length_mm=length,
        centre=tuple(float(c) for c in index.mean(axis=0)),
    )


def eccentricity(index: np.ndarray) -> float:
    """Return the eccentricity of the ellipse with a 2D region's second moments, from its pixels (N, 2); 0 is round."""
    spread = np.cov(index.T, bias=True) + np.eye(2) / 12
    low, high = np.linalg.eigvalsh(spread)
    return math.sqrt(max(0.0, 1.0 - low / high))


def solidity(index: np.ndarray) -> float:
    """Return the area of a 2D region over that of its convex hull, from its pixels (N, 2), pixels being squares."""
    corners = (index[:, None, :] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).reshape(-1, 2)
    try:
        return len(index) / float(ConvexHull(np.unique(corners, axis=0)).volume)
    except QhullError:
        return 1.0


def _ball_moment(volume: float, dimensions: int) -> float:
    """Return the mean squared distance from its centre of a ball's points, in the units of the volume's sides."""
    if dimensions == 3:
        return 0.6 * (3 * volume / (4 * math.pi)) ** (2 / 3)
    return 0.5 * volume / math.pi

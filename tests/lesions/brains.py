"""Small images with balls and tubes whose places are known."""

import numpy as np

from fmct.volume import Volume


def grid(shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[np.ndarray]:
    """Return the coordinates of the voxels in mm from the middle."""
    return [(index - (n - 1) / 2) * step for index, n, step in zip(np.indices(shape), shape, spacing, strict=True)]


def ball(
    shape: tuple[int, ...], spacing: tuple[float, ...], radius: float, centre: tuple[float, ...] | None = None
) -> np.ndarray:
    """Return a ball (a disc on two axes) about a place in mm from the middle."""
    centre = centre or (0.0,) * len(shape)
    return sum((axis - c) ** 2 for axis, c in zip(grid(shape, spacing), centre, strict=True)) <= radius**2


def tube(shape: tuple[int, ...], spacing: tuple[float, ...], radius: float, centre: tuple[float, float]) -> np.ndarray:
    """Return a tube along x about (z, y) mm from the middle."""
    z, y, _ = grid(shape, spacing)
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def volume(voxels: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), modality: str = "MR") -> Volume:
    """Return voxels (D, H, W) as a canonical (SPL) volume."""
    z, y, x = spacing
    affine = np.array([[0, 0, -x, 0], [0, -y, 0, 0], [z, 0, 0, 0], [0, 0, 0, 1.0]])
    units = "HU" if modality == "CT" else "arbitrary"
    return Volume(voxels.astype(np.int16 if modality == "CT" else np.float32), affine, modality, units)

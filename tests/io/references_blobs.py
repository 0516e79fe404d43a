"""Gaussian blobs at known world points in a body of water, and where they are found again."""

import numpy as np

from fmct.volume import Volume

SIGMA_MM = 5.0
AMPLITUDE_HU = 900.0
WATER_HU = 20.0
BLOBS_RAS = np.array([[-14.0, 8.0, 11.0], [17.0, -12.0, -9.0], [3.0, 15.0, -15.0], [-9.0, -17.0, 2.0]])
BODY_RADIUS_MM = 46.0


def hu_at(points_ras: np.ndarray) -> np.ndarray:
    """Return the HU of the phantom at RAS points (..., 3): water with blobs, air outside a ball."""
    values = np.full(points_ras.shape[:-1], WATER_HU)
    for centre in BLOBS_RAS:
        distance = ((points_ras - centre) ** 2).sum(axis=-1)
        values += AMPLITUDE_HU * np.exp(-distance / (2 * SIGMA_MM**2))
    values[(points_ras**2).sum(axis=-1) > BODY_RADIUS_MM**2] = -1000.0
    return np.rint(values)


def on_grid(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return the phantom (D, H, W) on a grid; affine: voxel indices in array order → RAS mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return hu_at(index @ affine[:3, :3].T + affine[:3, 3])


def distances_in_voxels(volume: Volume) -> np.ndarray:
    """Return how far from its place each blob lies in a volume, (blobs,), in voxels of its own spacing, per worst axis.

    A blob is found without knowledge of its place: the centre of mass around the brightest voxel left.
    """
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), axis=-1)
    world = volume.world(index)
    excess = volume.voxels.astype(np.float64) - WATER_HU
    excess[(world**2).sum(axis=-1) > (BODY_RADIUS_MM - 8.0) ** 2] = 0.0
    found = []
    for _ in BLOBS_RAS:
        brightest = world[np.unravel_index(int(np.argmax(excess)), excess.shape)]
        near = ((world - brightest) ** 2).sum(axis=-1) < (2.6 * SIGMA_MM) ** 2
        for _ in range(8):  # a symmetric window is only reached by following the centre
            weights = np.where(near, np.clip(excess, 0.0, None), 0.0)
            centre = (weights[..., None] * world).sum(axis=(0, 1, 2)) / weights.sum()
            near = ((world - centre) ** 2).sum(axis=-1) < (2.6 * SIGMA_MM) ** 2
        found.append(centre)
        excess[((world - centre) ** 2).sum(axis=-1) < (3.0 * SIGMA_MM) ** 2] = 0.0
    # Compare in index space, so that each axis counts in its own voxels.
    places, wanted = volume.index(np.array(found)), volume.index(BLOBS_RAS)
    return np.abs(places[:, None] - wanted[None]).max(axis=-1).min(axis=0)

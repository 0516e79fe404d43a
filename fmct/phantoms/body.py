"""Synthetic CT for tests, examples and benchmarks: a seeded body that looks like a trunk, and blobs at known places."""

from collections.abc import Sequence

import numpy as np

from fmct import randomness
from fmct.shapes import Triple
from fmct.volume import AIR_HU, Volume

FAT, MUSCLE, ORGAN, LUNG, SPONGY, CORTICAL, BLOOD, FOAM = -100, 50, 60, -820, 250, 900, 45, -700


def axial_affine(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the (4, 4) affine of a canonical (SPL) axial grid whose middle lies at the world's origin."""
    z, y, x = spacing_mm
    affine = np.array([[0, 0, -x, 0], [0, -y, 0, 0], [z, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def blobs(
    points_mm: np.ndarray,
    shape: Triple,
    affine: np.ndarray,
    sigma_mm: float,
    *,
    amplitude: float = 1500.0,
    background: float = 0.0,
) -> Volume:
    """Return Gaussian blobs at RAS positions `points_mm` (P, 3) on the grid of `affine` (voxel z, y, x → RAS mm).

    Each blob is isotropic in millimetres with standard deviation `sigma_mm`, whatever the grid's obliqueness or
    anisotropy; values are HU above `background`.
    """
    points = np.atleast_2d(np.asarray(points_mm, dtype=np.float64))
    image = np.full(shape, background, dtype=np.float64)
    to_index = np.linalg.inv(affine[:3, :3])
    # Where a blob is below half an HU it is not drawn: its box in index coordinates, whatever the grid's angles.
    reach = sigma_mm * np.sqrt(2 * np.log(2 * max(amplitude, 1.0)))
    margin = reach * np.linalg.norm(to_index, axis=1)
    for point in points:
        centre = to_index @ (point - affine[:3, 3])
        low = np.maximum(np.floor(centre - margin).astype(int), 0)
        high = np.minimum(np.ceil(centre + margin).astype(int) + 1, shape)
        if (high <= low).any():
            continue
        index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
        offset = (index - centre) @ affine[:3, :3].T
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        image[box] += amplitude * np.exp(-0.5 * (offset**2).sum(-1) / sigma_mm**2)
    return Volume(np.rint(np.clip(image, -32768, 32767)).astype(np.int16), affine)


def body(seed: int, shape: Triple, spacing_mm: Sequence[float], *, noise_hu: float = 12.0) -> Volume:
    """Return a CT-like trunk, int16 HU on a canonical grid: skin, fat, muscle, bones, lungs, organs, vessels, couch.

    Anatomy is in millimetres, so that another grid shows the same body of that seed; half of it (superior) is chest.
    """
    random = randomness.generator(seed, "phantom")
    z, y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True))
    # Forward (+) is anterior, sideways (+) is right, up (+) is superior; canonical y and x grow to P and L.
    up, front, right = z[:, None, None], -y[None, :, None], -x[None, None, :]
    wide, deep = random.uniform(150, 190), random.uniform(100, 130)
    fat = random.uniform(8, 25)
    image = np.full(shape, AIR_HU, dtype=np.float32)
    taper = 1 - 0.08 * np.cos(up / 120 + random.uniform(0, 6))

    # From outside in: skin, fat, muscle, and the fat that the organs lie in.
    for depth, value in ((0.0, MUSCLE), (2.0, FAT), (fat, MUSCLE), (fat + 18, FAT)):
        inside = (right / ((wide - depth) * taper)) ** 2 + (front / ((deep - depth) * taper)) ** 2 <= 1
        image[np.broadcast_to(inside, shape)] = value
    _draw_organs(image, up, front, right, wide, deep, random)
    _draw_bones(image, up, front, right, wide - fat, deep - fat, random)
    _draw_vessels(image, up, front, right, random)
    couch = (np.abs(front + deep + 14) < 8) & (np.abs(right) < 210)
    image[np.broadcast_to(couch, shape)] = FOAM
    image += random.normal(0, noise_hu, shape).astype(np.float32)
    return Volume(np.rint(np.clip(image, -1024, 3071)).astype(np.int16), axial_affine(shape, spacing_mm))


def _draw_organs(
    image: np.ndarray,
    up: np.ndarray,
    front: np.ndarray,
    right: np.ndarray,
    wide: float,
    deep: float,
    random: np.random.Generator,
) -> None:
    """Draw lungs and heart above the middle, liver, spleen, kidneys and bowel below it."""
    organs = [  # value, centre (up, front, right), half axes
        (LUNG, (90, 5, 0.45 * wide), (115, 0.65 * deep, 0.36 * wide)),
        (LUNG, (90, 5, -0.45 * wide), (115, 0.65 * deep, 0.34 * wide)),
        (BLOOD + 5, (45, 0.28 * deep, -0.14 * wide), (50, 48, 52)),
        (ORGAN, (-60, 0.15 * deep, 0.38 * wide), (65, 0.6 * deep, 0.42 * wide)),
        (ORGAN - 8, (-55, -0.25 * deep, -0.55 * wide), (45, 32, 30)),
        (ORGAN - 30, (-110, -0.4 * deep, 0.33 * wide), (52, 26, 25)),
        (ORGAN - 30, (-105, -0.4 * deep, -0.33 * wide), (52, 26, 25)),
        (-50, (-140, 0.35 * deep, -0.1 * wide), (60, 35, 80)),
    ]
    for value, centre, half in organs:
        at = np.asarray(centre) + random.normal(0, 5, 3)
        size = np.asarray(half) * random.uniform(0.9, 1.1, 3)
        organ = ((up - at[0]) / size[0]) ** 2 + ((front - at[1]) / size[1]) ** 2 + ((right - at[2]) / size[2]) ** 2 <= 1
        image[organ] = value + random.normal(0, 5)


def _draw_bones(
    image: np.ndarray,
    up: np.ndarray,
    front: np.ndarray,
    right: np.ndarray,
    wide: float,
    deep: float,
    random: np.random.Generator,
) -> None:
    """Draw a spine with vertebrae and discs, and slanted ribs around the chest."""
    back = front + 0.62 * deep
    period = random.uniform(27, 32)
    disc = np.mod(up, period) < 0.2 * period
    distance = np.sqrt(back**2 + (0.85 * right) ** 2)
    column = distance <= 19
    image[np.broadcast_to(column & ~disc, image.shape)] = SPONGY
    image[np.broadcast_to((distance > 16) & column & ~disc, image.shape)] = CORTICAL
    image[np.broadcast_to(column & disc, image.shape)] = 80
    image[np.broadcast_to(np.hypot(back + 27, right) <= 8, image.shape)] = 30  # spinal canal
    ring = np.sqrt((right / (wide - 8)) ** 2 + (front / (deep - 8)) ** 2)
    # Ribs fall forward: their height is a slanted plane, repeated at the vertebrae's period.
    rib = (np.abs(ring - 0.97) < 0.045) & (np.mod(up + 0.35 * front, period) < 10) & (up > -20)
    image[rib] = CORTICAL * 0.7


def _draw_vessels(
    image: np.ndarray, up: np.ndarray, front: np.ndarray, right: np.ndarray, random: np.random.Generator
) -> None:
    """Draw aorta, vena cava and vessels that wind through the lungs; about half the seeds have contrast."""
    value = BLOOD + (random.uniform(80, 250) if random.random() < 0.5 else 0)
    for at_front, at_right, radius in ((-28, -12, 12), (-18, 22, 11)):
        wave = 4 * np.sin(up / 60 + random.uniform(0, 6))
        image[np.hypot(front - at_front, right - at_right - wave) <= radius] = value
    for side in (-1, 1):
        for _ in range(6):
            slope, phase = random.uniform(-0.5, 0.5, 2), random.uniform(0, 6, 2)
            at_front, at_right = random.uniform(-30, 40), side * random.uniform(55, 95)
            bend_front = at_front + slope[0] * up + 8 * np.sin(up / 25 + phase[0])
            bend_right = at_right + slope[1] * up + 8 * np.sin(up / 30 + phase[1])
            vessel = (np.hypot(front - bend_front, right - bend_right) <= random.uniform(2, 4.5)) & (image < -600)
            image[vessel & (np.abs(up) < 200) & (np.abs(right) < 130) & (image > -950)] = value

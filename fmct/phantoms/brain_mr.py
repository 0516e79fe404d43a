"""SYNTHETIC susceptibility MR of a brain: tissues, iron, veins and microbleeds, drawn from formulas.

Veins are the mimic: dark like microbleeds on T2*-weighted magnitude images (bright on susceptibility maps), and round
where a slice cuts them. No result on it says anything about people.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fmct import randomness
from fmct.errors import ConfigError
from fmct.phantoms.body import axial_affine
from fmct.shapes import Triple
from fmct.volume import Volume

TITLE = "SYNTHETIC brain phantom (MR)"
SIGNS = ("dark", "bright")
DIAMETERS_MM = (2.0, 10.0)
# Magnitude of each tissue, and its susceptibility in parts per billion.
TISSUES = {
    "csf": (1.0, 0.0),
    "grey": (0.78, 10.0),
    "white": (0.64, -20.0),
    "nuclei": (0.5, 90.0),
    "scalp": (0.55, 0.0),
    "skull": (0.08, 0.0),
}
_VEIN, _BLEED = (0.18, 220.0), (0.06, 400.0)
_CORTEX_MM, _CSF_MM, _SKULL_MM, _SCALP_MM = 3.5, 2.5, 4.0, 4.0
_ANISOTROPIC = (0.92, 1.15, 0.95)  # half axes (z, y, x) of a brain of unit size


@dataclass(frozen=True)
class BrainPhantom:
    """One phantom. image: MR, float32. lesions, brain, veins: masks on its grid. diameters_mm: of the microbleeds."""

    image: Volume
    lesions: Volume
    brain: Volume
    veins: Volume
    diameters_mm: tuple[float, ...]


def brain_phantom(
    seed: int,
    *,
    shape: Triple = (64, 80, 64),
    spacing_mm: Sequence[float] = (1.5, 1.5, 1.5),
    lesions: int | None = None,
    sign: str = "dark",
    noise: float = 0.035,
    bias: float = 0.25,
    veins: int = 22,
) -> BrainPhantom:
    """Return the phantom of a seed and a grid.

    lesions: how many microbleeds, None draws 0 to 6. sign: `dark` (magnitude, with a bias field of relative strength
    `bias`) or `bright` (susceptibility in ppb, signed, no bias). noise: standard deviation, 1 being the CSF's
    magnitude; complex, so that air is Rician. veins: how many trees. Raises ConfigError for another sign.
    """
    if sign not in SIGNS:
        raise ConfigError(f"brain phantom: sign is dark or bright, got {sign!r}.")
    random = randomness.generator(seed, "brain")
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)
    extent = min(n * s / (2 * a) for n, s, a in zip(shape, spacing_mm, _ANISOTROPIC, strict=True))
    radius = (extent - _CSF_MM - _SKULL_MM - _SCALP_MM - 2) * random.uniform(0.94, 1.0)
    half = radius * np.asarray(_ANISOTROPIC, dtype=np.float32) * random.uniform(0.97, 1.03, 3)
    depth = _depth(grid, half, random)
    labels = _anatomy(grid, depth, half, random)
    column = 0 if sign == "dark" else 1
    ideal = np.zeros(shape, dtype=np.float32)
    for number, values in enumerate(TISSUES.values(), start=1):
        ideal[labels == number] = values[column] * random.uniform(0.97, 1.03)
    inside = depth >= 0
    vein_share = _veins(grid, depth, half, random, veins)
    ideal += vein_share * (_VEIN[column] - ideal) * (depth > -_CSF_MM)
    count = int(random.integers(0, 7)) if lesions is None else lesions
    places, diameters = _places(grid, depth, vein_share, random, count)
    mask = np.zeros(shape, dtype=bool)
    for place, diameter in zip(places, diameters, strict=True):
        share, core = _bleed(grid, place, diameter, float(np.mean(spacing_mm)), random)
        ideal += share * (_BLEED[column] - ideal)
        mask |= core & inside
    image = _magnitude(ideal, axes, random, noise, bias) if sign == "dark" else _susceptibility(ideal, inside, random)
    affine = axial_affine(shape, spacing_mm)
    image_volume = Volume(image.astype(np.float32), affine, "MR", "arbitrary")
    parts = (mask, inside, (vein_share > 0.5) & inside)
    masks = [Volume(part.astype(np.float32), affine, "mask", "fraction") for part in parts]
    return BrainPhantom(image_volume, masks[0], masks[1], masks[2], tuple(diameters))


def _depth(grid: np.ndarray, half: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return mm below the brain's surface, an ellipsoid with folds, (D, H, W); negative outside."""
    scaled = grid / half
    norm = np.sqrt((scaled**2).sum(-1)) + 1e-6
    depth = (1 - norm) * float(half.mean())
    waves = np.zeros_like(depth)
    for _ in range(6):
        wave = random.normal(0, 1, 3)
        wave *= random.uniform(0.35, 0.6) / np.linalg.norm(wave)
        waves += np.sin(grid @ wave.astype(np.float32) + random.uniform(0, 6.3))
    sulci = np.exp(-((waves / 0.5) ** 2)) * 9.0  # narrow valleys where the waves cancel
    fissure = 12.0 * np.exp(-((grid[..., 2] / 1.6) ** 2)) * (grid[..., 0] > 0)
    shell = np.exp(-((np.maximum(depth, 0) / 9.0) ** 2))
    return (depth - (sulci + fissure) * shell).astype(np.float32)


def _anatomy(grid: np.ndarray, depth: np.ndarray, half: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the number of each voxel's tissue, in the order of TISSUES from 1 on; 0 is air."""
    names = {name: number for number, name in enumerate(TISSUES, start=1)}
    smooth = (1 - np.sqrt(((grid / half) ** 2).sum(-1))) * float(half.mean())
    labels = np.zeros(depth.shape, dtype=np.uint8)
    labels[smooth > -(_CSF_MM + _SKULL_MM + _SCALP_MM)] = names["scalp"]
    labels[smooth > -(_CSF_MM + _SKULL_MM)] = names["skull"]
    labels[smooth > -_CSF_MM] = names["csf"]
    labels[depth >= 0] = names["grey"]
    labels[depth >= _CORTEX_MM] = names["white"]
    side = np.abs(grid[..., 2])
    unit = float(half.mean())
    shift = random.normal(0, 0.02, 3) * unit
    for name, centre, axes in (
        ("csf", (0.1, 0.04, 0.12), (0.17, 0.4, 0.08)),
        ("nuclei", (0.0, -0.12, 0.3), (0.15, 0.2, 0.09)),
        ("nuclei", (-0.02, 0.12, 0.15), (0.1, 0.12, 0.08)),
    ):
        place = np.stack([grid[..., 0] - shift[0], grid[..., 1] - shift[1], side], -1) / unit
        inside = (((place - np.asarray(centre)) / np.asarray(axes)) ** 2).sum(-1) <= 1
        labels[inside & (depth > 0)] = names[name]
    return labels


def _veins(
    grid: np.ndarray, depth: np.ndarray, half: np.ndarray, random: np.random.Generator, trees: int
) -> np.ndarray:
    """Return the veins' share of each voxel, (D, H, W) in [0, 1]: medullary ones inwards, others along the surface."""
    share = np.zeros(depth.shape, dtype=np.float32)
    spacing = np.abs(grid[1, 1, 1] - grid[0, 0, 0])
    origin, least = grid[0, 0, 0], float(spacing.min())
    for number in range(trees):
        direction = random.normal(0, 1, 3)
        direction /= np.linalg.norm(direction)
        start = direction * half * random.uniform(0.93, 1.0)
        surface = number % 2 == 0
        heading = np.cross(direction, random.normal(0, 1, 3)) if surface else -direction
        heading /= np.linalg.norm(heading) + 1e-6
        radius = random.uniform(0.7, 1.5) if surface else random.uniform(0.5, 1.0)
        point, length = start.copy(), random.uniform(25, 60) if surface else random.uniform(12, 30)
        for _ in range(int(length / (0.5 * least))):
            heading += random.normal(0, 0.12, 3)
            heading /= np.linalg.norm(heading)
            point = point + heading * 0.5 * least
            if surface:  # stay at the height at which it began
                point *= np.linalg.norm(start / half) / (np.linalg.norm(point / half) + 1e-6)
            _stamp(share, (point - origin) / spacing, radius, spacing)
            radius = max(0.4, radius * 0.997)
    return share


def _stamp(share: np.ndarray, place: np.ndarray, radius: float, spacing: np.ndarray) -> None:
    """Raise `share` to that of a ball of `radius` mm at the fractional index `place`, with soft edges."""
    reach = np.ceil((radius + spacing) / spacing).astype(int)
    low = np.maximum(np.floor(place).astype(int) - reach, 0)
    high = np.minimum(np.floor(place).astype(int) + reach + 2, share.shape)
    if (high <= low).any():
        return
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    axes = np.ogrid[box]
    square = sum(((axis - p) * s) ** 2 for axis, p, s in zip(axes, place, spacing, strict=True))
    soft = float(spacing.mean())
    part = np.clip((radius - np.sqrt(np.asarray(square))) / soft + 0.5, 0, 1) * min(1.0, 2 * radius / soft)
    share[box] = np.maximum(share[box], part.astype(np.float32))


def _places(
    grid: np.ndarray, depth: np.ndarray, veins: np.ndarray, random: np.random.Generator, count: int
) -> tuple[list[np.ndarray], list[float]]:
    """Return centres (z, y, x mm) and diameters of microbleeds: in tissue, apart from each other and from veins."""
    clear = np.asarray(ndimage.minimum_filter((veins < 0.1).astype(np.uint8), size=3), dtype=bool)
    candidates = np.argwhere(clear & (depth > 3.0))
    centres: list[np.ndarray] = []
    diameters: list[float] = []
    for _ in range(200 * count):
        if len(centres) == count or not len(candidates):
            break
        index = tuple(candidates[int(random.integers(len(candidates)))])
        low, high = DIAMETERS_MM
        diameter = low + (high - low) * float(random.beta(1.2, 3.0))
        place = grid[index].astype(np.float64)
        apart = all(
            np.linalg.norm(place - other) > (diameter + size) / 2 + 4
            for other, size in zip(centres, diameters, strict=True)
        )
        if apart and depth[index] > diameter / 2:
            centres.append(place)
            diameters.append(diameter)
    return centres, diameters


def _bleed(
    grid: np.ndarray, place: np.ndarray, diameter: float, spacing: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (share of the voxel, bool voxels that count as the lesion) of one microbleed, nearly a ball."""
    squash = random.uniform(0.88, 1.12, 3).astype(np.float32)
    distance = np.sqrt((((grid - place.astype(np.float32)) / squash) ** 2).sum(-1))
    share = np.clip((diameter / 2 - distance) / spacing + 0.5, 0, 1)
    core = share >= 0.5
    core |= distance == distance.min()  # the smallest one is a voxel at least
    return share * min(1.0, 0.5 + diameter / 8), core


def _magnitude(
    ideal: np.ndarray, axes: Sequence[np.ndarray], random: np.random.Generator, noise: float, bias: float
) -> np.ndarray:
    """Return a T2*-weighted magnitude image: partial volume, a smooth multiplicative field, Rician noise; arbitrary
    units of a scanner."""
    blurred = ndimage.gaussian_filter(ideal, 0.35)
    field = np.zeros_like(ideal)
    for _ in range(3):
        waves = [
            np.cos(a / (np.ptp(a) + 1e-6) * random.uniform(1, 3) + random.uniform(0, 6.3)).astype(np.float32)
            for a in axes
        ]
        field += waves[0][:, None, None] * waves[1][None, :, None] * waves[2][None, None, :] * random.uniform(-1, 1)
    field = np.exp(bias * field / (np.abs(field).max() + 1e-6))
    real = blurred * field + random.normal(0, noise, ideal.shape)
    return np.hypot(real, random.normal(0, noise, ideal.shape)) * random.uniform(400, 1600)


def _susceptibility(ideal: np.ndarray, inside: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a susceptibility map in ppb: signed, zero outside the brain."""
    return np.where(inside, ndimage.gaussian_filter(ideal, 0.35) + random.normal(0, 12, ideal.shape), 0.0)

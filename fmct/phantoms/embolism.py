"""SYNTHETIC pairs of a non-contrast CT and a CT pulmonary angiogram, with emboli, for tests and examples.

`fmct.phantoms.cohort` writes whole cohorts of them. Nothing measured on them says anything about patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fmct import randomness
from fmct.errors import DataError
from fmct.phantoms.body import axial_affine
from fmct.phantoms.thorax import BLOOD_HU, CLOT_IN_CONTRAST_HU, Contrast, draw, thorax
from fmct.shapes import Triple
from fmct.volume import Volume

TITLE = "SYNTHETIC non-contrast CT and CTPA pairs"
_ADULT_MM = 330.0
_WAVES = 6
_LATTICE = 15  # points a side on which the largest displacement is found


@dataclass(frozen=True)
class PhantomPair:
    """A SYNTHETIC pair on one grid. Every mask lies on the non-contrast scan, as float32 0 or 1.

    mask: the emboli; vessels: arteries and veins; valid: inside both fields of view. field_mm: (D, H, W, 3), what was
    not registered: point p of the non-contrast scan lies at p + field_mm in the angiogram, RAS mm. label: 1 if emboli.
    """

    nct: Volume
    ctpa: Volume
    mask: Volume
    valid: Volume
    field_mm: np.ndarray
    label: int
    arteries: Volume
    veins: Volume
    vessels: Volume
    heart: Volume
    lungs: Volume


@dataclass(frozen=True)
class PhantomAngiogram:
    """A SYNTHETIC CT pulmonary angiogram alone. mask: the emboli, float32 0 or 1 on its grid. label: 1 if emboli."""

    ctpa: Volume
    mask: Volume
    label: int


def phantom_angiogram(
    seed: int,
    *,
    shape: Triple = (64, 64, 64),
    spacing_mm: Sequence[float] = (3.0, 3.0, 3.0),
    positive: bool = True,
    enhancement_hu: float = 260.0,
    noise_hu: float = 25.0,
) -> PhantomAngiogram:
    """Return the angiogram of a seed: that of its pair with no misregistration, at half the cost, and its mask.

    Raises DataError for sizes that make no sense, or an embolus that fills no voxel by half.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    _check(shape, spacing, positive, None, 0.0)
    width = _width(shape, spacing)
    sizes = _embolus_sizes(seed, None, None, None, float(spacing.max())) if positive else ()
    affine = axial_affine(shape, spacing.tolist())
    share = _venous_share(seed)
    contrast = _with_contrast(enhancement_hu, share)
    person = thorax(seed, width, emboli=sizes)
    image, parts = draw(person, _grid_points(shape, affine), affine, float(spacing.mean()), contrast)
    if positive and not (parts["clot"] >= 0.5).any():
        raise DataError(f"an embolus of {sizes} mm (radius, length) fills no voxel of {spacing.tolist()} mm by half.")
    scan = _scan(image, affine, noise_hu, randomness.generator(seed, "noise", "ctpa"))
    return PhantomAngiogram(scan, _mask(parts["clot"], affine), int(positive))


def phantom_pair(
    seed: int,
    *,
    shape: Triple = (64, 64, 64),
    spacing_mm: Sequence[float] = (3.0, 3.0, 3.0),
    positive: bool = True,
    emboli: int | None = None,
    embolus_radius_mm: float | None = None,
    embolus_length_mm: float | None = None,
    enhancement_hu: float = 260.0,
    venous_share: float | None = None,
    misregistration_mm: float = 4.0,
    noise_hu: float = 25.0,
    width_mm: float | None = None,
) -> PhantomPair:
    """Return the pair of a seed: the same person with or without emboli, on any grid, with any deformation.

    emboli, embolus_radius_mm, embolus_length_mm: drawn where not given (1 to 3; 3 to 6 mm, on a coarse
    grid at least .8 voxels; 10 to 30 mm).
    enhancement_hu: what contrast adds to blood in the pulmonary arteries; venous_share: of it in pulmonary veins and
    aorta (0.45 early to 0.9 late, drawn where not given). misregistration_mm: the largest displacement of a smooth
    field between the scans. width_mm: of the chest; None takes an adult's, or a smaller person who fits the grid.
    Blood has 40 HU, a clot 65 HU without contrast and 50 HU among it. Raises DataError for sizes that make no sense.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    _check(shape, spacing, positive, emboli, misregistration_mm)
    width = _width(shape, spacing) if width_mm is None else width_mm
    sizes = _embolus_sizes(seed, emboli, embolus_radius_mm, embolus_length_mm, float(spacing.max())) if positive else ()
    person = thorax(seed, width, emboli=sizes)
    affine = axial_affine(shape, spacing.tolist())
    soft = float(spacing.mean())
    points = _grid_points(shape, affine)
    field = displacement(seed, points, width, misregistration_mm)
    # The angiogram is drawn where its voxels are; the other scan looks up the person where its points have moved to.
    share = _venous_share(seed) if venous_share is None else venous_share
    ctpa, _ = draw(person, points, affine, soft, _with_contrast(enhancement_hu, share))
    nct, parts = draw(person, points + field, affine, soft, Contrast(), reach_mm=misregistration_mm)
    if positive and not (parts["clot"] >= 0.5).any():
        raise DataError(f"an embolus of {sizes} mm (radius, length) fills no voxel of {spacing.tolist()} mm by half.")
    return PhantomPair(
        nct=_scan(nct, affine, noise_hu, randomness.generator(seed, "noise", "nct")),
        ctpa=_scan(ctpa, affine, noise_hu, randomness.generator(seed, "noise", "ctpa")),
        mask=_mask(parts["clot"], affine),
        valid=_mask(_inside_grid(points + field, shape, affine), affine),
        field_mm=field,
        label=int(positive),
        arteries=_mask(parts["arteries"], affine),
        veins=_mask(parts["veins"], affine),
        vessels=_mask(np.maximum(parts["arteries"], parts["veins"]), affine),
        heart=_mask(parts["heart"], affine),
        lungs=_mask(parts["lungs"], affine),
    )


def _width(shape: Triple, spacing: np.ndarray) -> float:
    """Return the chest's width in mm: an adult's, or that of a smaller person who fits the grid."""
    return float(min(_ADULT_MM, 0.94 * shape[2] * spacing[2], 1.34 * shape[1] * spacing[1]))


def _venous_share(seed: int) -> float:
    """Return the share of the arteries' enhancement that a person's veins have: early to late."""
    return float(randomness.generator(seed, "phase").uniform(0.45, 0.9))


def _with_contrast(enhancement_hu: float, venous_share: float) -> Contrast:
    """Return how bright blood is when pulmonary arteries gain `enhancement_hu` and veins that share of it."""
    return Contrast(
        arteries=BLOOD_HU + enhancement_hu,
        veins=BLOOD_HU + venous_share * enhancement_hu,
        cava=BLOOD_HU + 1.4 * enhancement_hu,
        clot=CLOT_IN_CONTRAST_HU,
        muscle=0.2 * venous_share * enhancement_hu,
    )


def _mask(share: np.ndarray, affine: np.ndarray) -> Volume:
    """Return the voxels of which a part fills half or more."""
    return Volume((share >= 0.5).astype(np.float32), affine, "mask", "fraction")


def displacement(seed: int, points: np.ndarray, width_mm: float, largest_mm: float) -> np.ndarray:
    """Return a smooth displacement (…, 3) in RAS mm at `points` (…, 3): a few long waves, at most `largest_mm` long.

    Wavelengths are at least 16 times the largest displacement, so that nothing folds.
    """
    random = randomness.generator(seed, "displacement")
    shortest = max(0.35 * width_mm, 16 * largest_mm)
    direction = random.normal(size=(_WAVES, 3))
    waves = 2 * np.pi * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    waves /= shortest * random.uniform(1, 2, (_WAVES, 1))
    amplitude, phase = random.normal(size=(_WAVES, 3)), random.uniform(0, 2 * np.pi, _WAVES)

    def _at(place: np.ndarray) -> np.ndarray:
        return np.sin(place @ waves.T.astype(place.dtype) + phase.astype(place.dtype)) @ amplitude.astype(place.dtype)

    side = np.linspace(-0.6, 0.6, _LATTICE) * width_mm
    lattice = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1)
    most = float(np.linalg.norm(_at(lattice), axis=-1).max())
    # The lattice may miss the very peak: 2 % less than asked for stays below it.
    return (_at(points) * np.float32(0.98 * largest_mm / most)).astype(np.float32)


def _check(shape: Triple, spacing: np.ndarray, positive: bool, emboli: int | None, misregistration_mm: float) -> None:
    if len(shape) != 3 or min(shape) < 8 or spacing.shape != (3,) or not (spacing > 0).all():
        raise DataError(
            f"phantom: expected three sizes ≥ 8 and three spacings > 0 mm; got {shape} and {spacing.tolist()}."
        )
    if emboli is not None and (emboli < 1 or not positive):
        raise DataError(f"phantom: emboli={emboli} with positive={positive}; a positive has at least one, others none.")
    if misregistration_mm < 0:
        raise DataError(f"phantom: misregistration_mm={misregistration_mm:g}; expected a length ≥ 0.")


def _embolus_sizes(
    seed: int, count: int | None, radius_mm: float | None, length_mm: float | None, spacing_mm: float
) -> tuple[tuple[float, float], ...]:
    """Return (radius, length) of each embolus; drawn ones are wide enough to be seen on the grid."""
    random = randomness.generator(seed, "emboli")
    number = int(random.integers(1, 4))
    drawn = np.stack([random.uniform(3, 6, 64).clip(0.8 * spacing_mm), random.uniform(10, 30, 64)], axis=1)
    return tuple(
        (float(radius_mm or radius), float(length_mm or length)) for radius, length in drawn[: count or number]
    )


def _grid_points(shape: Triple, affine: np.ndarray) -> np.ndarray:
    """Return the RAS position of every voxel, (D, H, W, 3) float32."""
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T.astype(np.float32) + affine[:3, 3].astype(np.float32)


def _inside_grid(points: np.ndarray, shape: Triple, affine: np.ndarray) -> np.ndarray:
    """Return 1 where points (…, 3) lie within an axial grid, its voxels' outer faces, and 0 elsewhere."""
    ends = np.array([[-0.5] * 3, np.array(shape) - 0.5]) @ affine[:3, :3].T + affine[:3, 3]
    low, high = ends.min(axis=0), ends.max(axis=0)
    return ((points >= low) & (points <= high)).all(axis=-1).astype(np.float32)


def _scan(image: np.ndarray, affine: np.ndarray, noise_hu: float, random: np.random.Generator) -> Volume:
    """Return an image with noise of this standard deviation, its grain a little coarser than a voxel, as int16 HU."""
    noise = ndimage.gaussian_filter(random.normal(size=image.shape).astype(np.float32), 0.6)
    noisy = image + noise * np.float32(noise_hu / max(float(noise.std()), 1e-6))
    return Volume(np.rint(np.clip(noisy, -1024, 3071)).astype(np.int16), affine)

"""SYNTHETIC enhancement of real CT without contrast: its vessels and organs at the HU of a phase, with partial volume.

Vessels that cannot be told from muscle are drawn along plausible paths, in every draw of a series, native ones
included, with the same noise and the same small error of calibration: only the HU of what an injection reaches differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from fmct import randomness
from fmct.contrast.morphology import depth_mm, zoomed
from fmct.contrast.organs import body_mask, find_organs, great_vessels, on_scan_grid, trunk_of
from fmct.contrast.time_curves import BLOOD_HU, Injection
from fmct.contrast.vessel_paths import Tube, find_paths, smooth_mm, tube_costs
from fmct.errors import DataError
from fmct.volume import Volume

_WORK_MM = np.array([3.0, 1.9, 1.9])  # vessels are looked for on this grid, or on the scan's own where that is coarser
_SUPERFICIAL_MM = 12.0
_NOISE_HU = (2.0, 14.0)
_CALIBRATION_HU = 6.0


@dataclass(frozen=True)
class Anatomy:
    """What of a scan can be enhanced. tubes: vessels. organs: {structure: bool mask on the organs' grid}.

    body, lungs: bool on the scan's own grid. limb: no trunk is shown, and contrast arrives later.
    """

    tubes: tuple[Tube, ...]
    organs: Mapping[str, np.ndarray]
    body: np.ndarray
    lungs: np.ndarray | None
    limb: bool


def find_anatomy(volume: Volume) -> Anatomy:
    """Return the vessels and organs of a canonical CT volume. Raises DataError where it shows neither."""
    if volume.modality != "CT":
        raise DataError(f"a {volume.modality} volume: only CT has HU that contrast raises.")
    hu, spacing = volume.voxels.astype(np.float32), volume.spacing
    body = body_mask(hu, spacing)
    if body.sum() * spacing.prod() < 30e3:
        raise DataError("less than 30 ml of a body in this volume: nothing to enhance.")
    trunk = trunk_of(hu, spacing, body)
    organs = find_organs(trunk) if trunk else {}
    tubes = great_vessels(trunk, spacing, len(hu)) if trunk else []
    if not organs or not tubes:  # a limb or a pelvis: its vessels run along z
        tubes = [*tubes, *limb_vessels(hu, spacing, body)]
    if not tubes and not organs:
        raise DataError("no vessel or organ is found in this volume: nothing to enhance.")
    lungs = on_scan_grid(trunk.lungs, volume.shape) > 0.5 if trunk is not None and trunk.lungs.any() else None
    return Anatomy(tuple(tubes), organs, body, lungs, limb=not organs)


def limb_vessels(hu: np.ndarray, spacing_mm: np.ndarray, body: np.ndarray) -> list[Tube]:
    """Return arteries with a vein beside each, and superficial veins, along z; thicker where the limb is thicker."""
    factors = np.minimum(spacing_mm / _WORK_MM, 1.0)
    work, inside = hu, body
    if (factors < 1).any():
        work, inside = zoomed(hu, factors), zoomed(body.astype(np.float32), factors) > 0.5
    grid = spacing_mm * np.asarray(hu.shape) / np.asarray(work.shape)
    area = ndimage.gaussian_filter1d(inside.sum(axis=(1, 2)) * grid[1] * grid[2] / 100, 2)
    wide_mm = np.median(inside.any(axis=1).sum(axis=1)) * grid[2]
    mains = 2 if wide_mm > 280 else 1  # both sides of a pelvis, or both legs
    costs = tube_costs(work, grid, inside)
    paths = find_paths(costs, grid, count=2 * mains + 2, apart_mm=15.0 if mains == 1 else 30.0)
    depth = depth_mm(inside, grid)
    deep = [float(np.mean([depth[z, y, x] for z, (y, x) in enumerate(path)])) for path in paths]
    ranked = sorted(range(len(paths)), key=lambda n: (deep[n] < _SUPERFICIAL_MM, n))
    tubes: list[Tube] = []
    radius = np.clip(0.26 * np.sqrt(np.maximum(area / mains, 1.0)), 1.1, 5.5)
    for rank, number in enumerate(ranked):
        line = smooth_mm(paths[number], grid)
        there = np.array([costs[z, y, x] < 3 for z, (y, x) in enumerate(paths[number])])
        size = np.where(ndimage.binary_closing(there, iterations=2), radius * (1.0 if rank < mains else 0.5), 0.0)
        if deep[number] < _SUPERFICIAL_MM:
            tubes.append(Tube("limb_vein", line, 0.8 * size))
            continue
        tubes += [Tube("limb_artery", line, size), _vein_beside(line, size, costs, grid)]
    return [_on_slices(tube, grid[0], spacing_mm[0], len(hu)) for tube in tubes]


def enhance(volume: Volume, anatomy: Anatomy, injection: Injection, seed: int, *key: int | str) -> Volume:
    """Return the volume as it might look so long after an injection, int16 HU; equal arguments give equal voxels."""
    random = randomness.generator(seed, "enhance", *key)
    hu, spacing = volume.voxels.astype(np.float32), volume.spacing
    smooth = ndimage.gaussian_filter(hu, 1.6 / spacing)
    rise = np.zeros_like(hu)
    soft = np.clip((smooth + 20) / 50, 0, 1) * (smooth < 130) * anatomy.body
    rise += injection.rise("muscle") * soft * _texture(hu.shape, spacing, random, 0.35, 18.0)
    if anatomy.lungs is not None:
        rise += injection.rise("pulmonary") * np.clip((smooth + 750) / 800, 0, 1) ** 2 * anatomy.lungs
    for name, mask in anatomy.organs.items():
        inside = on_scan_grid(mask, volume.shape) * soft
        mottled = 0.4 if name == "spleen" and (injection.seconds or 0) < 50 else 0.08
        own = injection.rise(name) * _texture(hu.shape, spacing, random, mottled, 7.0)
        if name == "liver":
            own = own + (injection.rise("portal_vein") - injection.rise("liver")) * _branches(hu.shape, spacing, random)
        rise += inside * (own - rise)
    _draw_tubes(hu, rise, smooth, anatomy.tubes, injection, spacing, random)
    noise = random.uniform(*_NOISE_HU) * ndimage.gaussian_filter(
        random.standard_normal(hu.shape, dtype=np.float32), (0.4, 0.6, 0.6)
    )
    hu += rise + 2.0 * noise + random.uniform(-_CALIBRATION_HU, _CALIBRATION_HU) * (smooth > -900)
    return replace(volume, voxels=np.rint(np.clip(hu, -1024, 3071)).astype(np.int16))


def _draw_tubes(
    hu: np.ndarray,
    rise: np.ndarray,
    smooth: np.ndarray,
    tubes: tuple[Tube, ...],
    injection: Injection,
    spacing: np.ndarray,
    random: np.random.Generator,
) -> None:
    """Put blood into every tube, keeping the image's noise, and its rise into `rise`; both in place."""
    for tube in tubes:
        sized = replace(tube, radius_mm=tube.radius_mm * random.uniform(0.85, 1.15))
        brighter = injection.rise(tube.name) * random.uniform(0.93, 1.07)
        for z in range(len(hu)):
            box, inside = sized.occupancy(z, (hu.shape[1], hu.shape[2]), spacing[1:])
            if inside.size == 0:
                continue
            inside = inside * (smooth[z][box] < 160) * (smooth[z][box] > -250)
            hu[z][box] += inside * (BLOOD_HU - smooth[z][box])
            rise[z][box] += inside * (brighter - rise[z][box])


def _vein_beside(line: np.ndarray, radius: np.ndarray, costs: np.ndarray, grid: np.ndarray) -> Tube:
    """Return the vein of an artery: a little wider, touching it, on the side where tissue costs least."""
    best, beside = np.inf, line
    for angle in np.arange(8) * np.pi / 4:
        away = np.stack([np.sin(angle), np.cos(angle)]) * (2.3 * radius[:, None] + 0.5)
        at = np.rint((line + away) / grid[1:]).astype(int).clip(0, np.asarray(costs.shape[1:]) - 1)
        cost = float(costs[np.arange(len(line)), at[:, 0], at[:, 1]].mean())
        if cost < best:
            best, beside = cost, line + away
    return Tube("limb_vein", beside, 1.25 * radius)


def _on_slices(tube: Tube, step_mm: float, spacing_mm: float, depth: int) -> Tube:
    """Return a tube with one point for each of the scan's own slices."""
    at, own = np.arange(depth) * spacing_mm / step_mm, np.arange(len(tube.radius_mm))
    centre = np.stack([np.interp(at, own, tube.centre_mm[:, axis]) for axis in (0, 1)], axis=1)
    return Tube(tube.name, centre, np.interp(at, own, tube.radius_mm))


def _texture(
    shape: tuple[int, ...], spacing: np.ndarray, random: np.random.Generator, spread: float, width_mm: float
) -> np.ndarray:
    """Return smooth positive factors about 1 with the given spread, float32: perfusion is not even."""
    coarse = np.maximum((np.asarray(shape) * spacing / width_mm).astype(int) + 2, 2)
    field = random.standard_normal(coarse, dtype=np.float32)
    fine = ndimage.zoom(field, np.asarray(shape) / coarse, order=1, grid_mode=True, mode="nearest")
    return np.clip(1 + spread * np.asarray(fine), 0.2, 2.5)


def _branches(shape: tuple[int, ...], spacing: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the occupancy of a made-up tree: two smooth random fields vanish together along thin winding lines."""
    distance = np.zeros(shape, dtype=np.float32)
    for _ in range(2):
        field = _texture(shape, spacing, random, 1.0, 24.0) - 1
        steepness = np.sqrt(sum(g**2 for g in np.gradient(field, *spacing)))
        distance += (field / np.maximum(steepness, 1e-3)) ** 2
    return np.clip((3.5 - np.sqrt(distance)) / float(spacing.mean()) + 0.5, 0, 1)

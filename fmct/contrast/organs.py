"""Organs of the trunk in non-contrast CT by HU, place and shape: coarse, and only where they can be told.

Axes are canonical (z up, y to the back, x to the left). Everything is found on a grid of 4 mm, where a scan takes
seconds. No learned part: what is found serves to brighten it (fmct.contrast.enhancement), not to measure it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fmct.contrast.morphology import depth_mm, eroded, grown, opened, pieces, zoomed
from fmct.contrast.vessel_paths import Tube, cheapest_path, smooth_mm

GRID_MM = 4.0
_SOFT = (10.0, 85.0)
_TRUNK_CM2 = 350.0  # a thigh has up to about 300


@dataclass(frozen=True)
class Trunk:
    """A scan on the grid of organs. hu: smoothed; body, lungs: bool, (D, H, W). spine: (D, 2) voxels y, x, smooth."""

    hu: np.ndarray
    body: np.ndarray
    lungs: np.ndarray
    spine: np.ndarray

    @property
    def soft(self) -> np.ndarray:
        """Where there is soft tissue, bool."""
        return self.body & (self.hu > _SOFT[0]) & (self.hu < _SOFT[1])

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Millimetres behind and to the left of the spine's middle, each (D, H, W) by broadcasting."""
        y, x = np.ogrid[: self.hu.shape[1], : self.hu.shape[2]]
        return (y[None] - self.spine[:, :1, None]) * GRID_MM, (x[None] - self.spine[:, 1:, None]) * GRID_MM


def body_mask(voxels: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Return where the patient is, (D, H, W) bool: what is denser than air and thicker than a couch, holes filled."""
    dense = ndimage.gaussian_filter(voxels.astype(np.float32), 2.0 / spacing_mm) > -400
    thick = np.stack([ndimage.binary_opening(plane, iterations=max(1, round(5 / spacing_mm[1]))) for plane in dense])
    labels, sizes = pieces(thick)
    if not len(sizes):
        return np.zeros(voxels.shape, dtype=bool)
    volume_ml = sizes * float(np.prod(spacing_mm)) / 1000
    kept = np.isin(labels, 1 + np.flatnonzero(volume_ml > max(20.0, 0.02 * volume_ml.max())))
    return np.stack([np.asarray(ndimage.binary_fill_holes(plane)) for plane in kept])


def trunk_of(voxels: np.ndarray, spacing_mm: np.ndarray, body: np.ndarray) -> Trunk | None:
    """Return a scan on the organs' grid, None when it shows no trunk: too slender, or no spine in its middle."""
    area = body.sum(axis=(1, 2)).mean() * spacing_mm[1] * spacing_mm[2] / 100
    if area < _TRUNK_CM2:
        return None
    factors = spacing_mm / GRID_MM
    hu = zoomed(np.asarray(ndimage.gaussian_filter(voxels.astype(np.float32), 0.4 / factors)), factors)
    coarse = zoomed(body.astype(np.float32), factors) > 0.5
    spine = _spine(hu, coarse)
    if spine is None:
        return None
    air = coarse & (hu < -500) & (hu > -990)
    labels, sizes = pieces(np.asarray(ndimage.binary_opening(air)))
    large = 1 + np.flatnonzero(sizes * GRID_MM**3 / 1000 > 150)
    lungs = np.asarray(ndimage.binary_closing(np.isin(labels, large), iterations=2), dtype=bool)
    return Trunk(hu, coarse, lungs, spine)


def find_organs(trunk: Trunk) -> dict[str, np.ndarray]:
    """Return {organ: (D, H, W) bool on the organs' grid} of those that are there: heart, liver, spleen, kidneys.

    Kidneys come as kidney_cortex, kidney_medulla and renal_pelvis; the heart as its chambers (pulmonary, artery) and
    myocardium.
    """
    found = _heart(trunk)
    taken = np.zeros_like(trunk.body)
    for mask in found.values():
        taken |= mask
    found |= _kidneys(trunk, taken)
    for mask in found.values():
        taken |= mask
    found |= _liver_and_spleen(trunk, grown(taken))
    return {name: mask for name, mask in found.items() if mask.any()}


def great_vessels(trunk: Trunk, spacing_mm: np.ndarray, depth: int) -> list[Tube]:
    """Return aorta and inferior vena cava as tubes on the scan's own slices, where round soft tissue lies there."""
    blood = np.exp(-(((trunk.hu - 45) / 28) ** 2)) * trunk.body
    sigma = (1.0, 9.0 / GRID_MM / 1.6, 9.0 / GRID_MM / 1.6)
    round_spot = ndimage.gaussian_filter(blood, sigma) - ndimage.gaussian_filter(
        blood, (1.0, sigma[1] * 2, sigma[2] * 2)
    )
    behind, left = trunk.sides
    lung_slices = trunk.lungs.sum(axis=(1, 2)) * GRID_MM**2 / 100 > 60
    tubes = []
    for name, (at_y, at_x), radius in (("artery", (-32.0, 14.0), 10.5), ("vena_cava", (-36.0, -22.0), 10.0)):
        away = np.hypot((behind - at_y) / 18, (left - at_x) / 16)
        costs = 1.0 - np.clip(4 * round_spot, 0, 1) + 0.6 * np.clip(away - 1, 0, 4)
        costs[~trunk.body | (trunk.hu > 120) | (trunk.hu < -80)] = 4.0
        path, mean = cheapest_path(costs.astype(np.float32))
        if mean > 1.2:
            continue
        there = costs[np.arange(len(path)), path[:, 0], path[:, 1]] < 1.5
        if name == "vena_cava":
            there &= ~lung_slices
        line = smooth_mm(path, np.full(3, GRID_MM), over_mm=12.0)
        at = np.arange(depth) * spacing_mm[0] / GRID_MM
        centre = np.stack([np.interp(at, np.arange(len(line)), line[:, axis]) for axis in (0, 1)], axis=1)
        shown = np.interp(at, np.arange(len(line)), ndimage.binary_closing(there, iterations=2).astype(float)) > 0.5
        tubes.append(Tube(name, centre, np.where(shown, radius, 0.0)))
    return tubes


def on_scan_grid(mask: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a mask of the organs' grid as soft-edged occupancy, (D, H, W) float32, on the scan's own grid."""
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 0.7)
    axes = [np.linspace(0, coarse - 1, fine) for coarse, fine in zip(mask.shape, shape, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij", copy=False)
    return np.clip((ndimage.map_coordinates(soft, grid, order=1) - 0.25) * 2, 0, 1).astype(np.float32)


def _spine(hu: np.ndarray, body: np.ndarray) -> np.ndarray | None:
    """Return the spine's middle, (D, 2) voxels, None without bone in the middle of the back on most slices."""
    bone = ndimage.binary_closing(hu > 140, iterations=1) & body
    middles = np.full((len(hu), 2), np.nan)
    for z, (slice_bone, slice_body) in enumerate(zip(bone, body, strict=True)):
        if not slice_body.any():
            continue
        rows, columns = np.nonzero(slice_body)
        middle, front, back = columns.mean(), rows.min(), rows.max()
        y, x = np.nonzero(slice_bone)
        near = (np.abs(x - middle) < 45 / GRID_MM) & (y > front + 0.45 * (back - front))
        if near.sum() * GRID_MM**2 >= 250:
            middles[z] = y[near].mean(), x[near].mean()
    seen = ~np.isnan(middles[:, 0])
    if seen.mean() < 0.6:
        return None
    at = np.arange(len(hu))
    filled = np.stack([np.interp(at, at[seen], middles[seen, axis]) for axis in (0, 1)], axis=1)
    return ndimage.gaussian_filter1d(ndimage.median_filter(filled, (5, 1)), 3, axis=0)


def _heart(trunk: Trunk) -> dict[str, np.ndarray]:
    behind, left = trunk.sides
    lung_cm2 = trunk.lungs.sum(axis=(1, 2)) * GRID_MM**2 / 100
    if lung_cm2.max() < 100:
        return {}
    low, high = (int(f(np.flatnonzero(lung_cm2 > 0.5 * lung_cm2.max()))) for f in (np.min, np.max))
    region = (behind < -25) & (left > -55) & (left < 95) & trunk.soft
    region[:low], region[low + max(1, int(0.65 * (high - low))) :] = False, False
    labels, sizes = pieces(opened(region, GRID_MM, 16))
    if not len(sizes):
        return {}
    heart = labels == 1 + int(sizes.argmax())
    if sizes.max() * GRID_MM**3 / 1000 < 120:
        return {}
    inside = eroded(heart, GRID_MM, 8)
    middle = np.argwhere(heart).mean(axis=0)
    y, x = np.ogrid[: heart.shape[1], : heart.shape[2]]
    left_heart = np.broadcast_to(((x - middle[2]) + (y - middle[1]) > 0)[None], heart.shape)
    return {"pulmonary": inside & ~left_heart, "artery": inside & left_heart, "myocardium": heart & ~inside}


def _kidneys(trunk: Trunk, taken: np.ndarray) -> dict[str, np.ndarray]:
    behind, left = trunk.sides
    place = (np.abs(behind) < 45) & (np.abs(left) > 24) & (np.abs(left) < 95) & trunk.soft & ~taken
    labels, sizes = pieces(opened(place, GRID_MM, 9))
    kidneys = np.zeros_like(trunk.body)
    for number in range(1, len(sizes) + 1):
        piece = labels == number
        volume_ml = piece.sum() * GRID_MM**3 / 1000
        around = grown(piece, 2) & ~grown(piece)
        in_fat = float((trunk.hu[around & trunk.body] < -15).mean())
        length = np.ptp(np.nonzero(piece)[0]) * GRID_MM
        away = abs(float(np.broadcast_to(left, piece.shape)[piece].mean()))
        if 50 <= volume_ml <= 380 and in_fat > 0.45 and 55 <= length <= 160 and away < 74:
            kidneys |= piece
    medulla = eroded(kidneys, GRID_MM, 7)
    pelvis = eroded(medulla, GRID_MM, 7)
    return {"kidney_cortex": kidneys & ~medulla, "kidney_medulla": medulla & ~pelvis, "renal_pelvis": pelvis}


def _liver_and_spleen(trunk: Trunk, taken: np.ndarray) -> dict[str, np.ndarray]:
    behind, left = trunk.sides
    inner = trunk.soft & ~taken & (depth_mm(trunk.body, GRID_MM) > 20) & (behind < 45)
    labels, sizes = pieces(opened(inner, GRID_MM, 14))
    found = {"liver": np.zeros_like(trunk.body), "spleen": np.zeros_like(trunk.body)}
    for number in range(1, len(sizes) + 1):
        piece = labels == number
        volume_ml = piece.sum() * GRID_MM**3 / 1000
        side = float(np.broadcast_to(left, piece.shape)[piece].mean())
        back = float(np.broadcast_to(behind, piece.shape)[piece].mean())
        if side < -20 and volume_ml > 300:
            found["liver"] |= piece & (left < 45)
        elif side > 45 and 50 < volume_ml < 700 and back > -45:
            found["spleen"] |= piece
    return found

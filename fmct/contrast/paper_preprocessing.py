"""From a CT to the slices that the published contrast networks read: resample, register, crop, keep a range, window.

Ye et al. 2022, in their order. Each of their defects is off unless its switch is on (LegacySwitches). What cannot be
read right is refused with a code, never scored in silence: too-short, wrong-body-part, non-axial, no-body, one-value.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from fmct.contrast.paper_registration import OUTSIDE_HU, Aligned, Template, align, respaced
from fmct.contrast.paper_settings import BodyPartProfile, LegacySwitches, Preparation
from fmct.errors import Refusal
from fmct.volume import Volume

BODY_ABOVE_HU = -500.0
DENSE_ABOVE_HU = 700.0
WINDOW_HU = (-200.0, 200.0)
LEAST_AXIAL_COSINE = 0.94  # 20 degrees
_INSIDE_SHARE = 0.5  # of a slice's square that must lie inside the scan
_SLICE_MM_RATIO = 1.05
_COARSE_MM = 4.0  # of a pixel of the body's outline


@dataclass(frozen=True)
class PreparedScan:
    """S slices of a scan.

    slices: (S, H, W) float32 in [0, 1], lowest first. inside: (S,) bool, whether the scan has that slice; others are
    never scored. z_mm: (S,) RAS height of the slices' middles in the scan's own world. facts: area_cm2, lung_share,
    similarity, and slices inside, as measured.
    """

    slices: np.ndarray
    inside: np.ndarray
    z_mm: np.ndarray
    facts: dict[str, Any]


def prepare(volume: Volume, template: Template, settings: Preparation) -> PreparedScan:
    """Return the slices of a CT, as a function of the scan, the template and the settings alone.

    Raises Refusal with a code for a scan that is not axial, of one value, without a body, that cannot be registered,
    that is shorter than the profile, or of another body part.
    """
    canonical = volume.oriented()
    check_axial(canonical)
    _check_values(canonical.voxels)
    legacy = settings.legacy
    _check_length(canonical, settings)
    scan = respaced(canonical, settings.spacing, legacy=legacy.water_outside)
    aligned = align(scan, template, settings.registration, legacy=legacy.water_outside)
    return kept_slices(aligned, template, settings)


def kept_slices(aligned: Aligned, template: Template, settings: Preparation) -> PreparedScan:
    """Return what a profile keeps of a scan on the template's grid, checked and windowed. Raises Refusal."""
    profile, legacy = settings.profile, settings.legacy
    numbers = slice_numbers(aligned.hu.shape[0], profile)
    _check_coverage(int(aligned.inside[numbers[numbers >= 0]].any(axis=(1, 2)).sum()), profile)
    hu, inside = crop(aligned.hu, aligned.inside, profile, swapped=legacy.swapped_crop)
    present = inside.mean(axis=(1, 2)) >= _INSIDE_SHARE
    _check_coverage(int(present.sum()), profile)
    facts = _outline(aligned, numbers[present], settings)
    _check_part(facts, profile)
    middle = (np.asarray(template.voxels.shape[1:]) - 1) / 2
    places = np.stack([template.volume.world([number, *middle]) for number in numbers])
    z_mm = places @ aligned.to_scan[2, :3] + aligned.to_scan[2, 3]
    facts |= {"similarity": aligned.similarity, "slices_inside": int(present.sum())}
    return PreparedScan(windowed(hu, legacy), present, z_mm, facts)


def crop(
    hu: np.ndarray, inside: np.ndarray, profile: BodyPartProfile, *, swapped: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kept slices (S, side, side) of HU and of what is inside, about the body's centre in the slab's middle.

    The slab is counted from the last slice. Whatever reaches beyond the grid is −1024 HU and outside. swapped: the
    centre's row is taken for its column and the other way round. Raises Refusal (no-body) without a voxel above −500.
    """
    row, column = body_centre(hu, profile)
    if swapped:
        row, column = column, row
    first = hu.shape[0] - profile.slab + profile.first
    corner = (first, round(row) - profile.side // 2, round(column) - profile.side // 2)
    size = (profile.slices, profile.side, profile.side)
    return _box(hu, corner, size, OUTSIDE_HU), _box(inside, corner, size, False)


def body_centre(hu: np.ndarray, profile: BodyPartProfile) -> tuple[float, float]:
    """Return (row, column) of the centre of mass of what is above −500 HU on the slab's middle slice."""
    number = min(max(hu.shape[0] - profile.slab // 2, 0), hu.shape[0] - 1)
    body = hu[number] > BODY_ABOVE_HU
    if not body.any():
        raise Refusal(
            "no-body",
            f"no voxel above {BODY_ABOVE_HU:g} HU on the middle slice of the profile {profile.name} after registration",
        )
    rows, columns = np.nonzero(body)
    return float(rows.mean()), float(columns.mean())


def slice_numbers(depth: int, profile: BodyPartProfile) -> np.ndarray:
    """Return (S,) slice numbers of a grid of `depth` slices that a profile keeps; negative ones lie below the grid."""
    return depth - profile.slab + np.arange(profile.first, profile.last + 1)


def windowed(hu: np.ndarray, legacy: LegacySwitches) -> np.ndarray:
    """Return HU as float32 in [0, 1]: −200 HU is 0, 0 HU is ½ and 200 HU is 1, for every scan.

    Legacy: above 700 HU is taken for 0 HU; the values are stretched between the array's own extremes after clipping,
    which Refusal (one-value) refuses where they are equal.
    """
    values = np.maximum(hu.astype(np.float32), np.float32(OUTSIDE_HU))
    if legacy.dense_as_water:
        values = np.where(values > DENSE_ABOVE_HU, np.float32(0), values)
    low, high = WINDOW_HU
    values = np.clip(values, low, high)
    if legacy.scan_range:
        low, high = float(values.min()), float(values.max())
        if not low < high:
            raise Refusal("one-value", "all voxels are equal after clipping: there is no range to stretch")
    return ((values - np.float32(low)) / np.float32(high - low)).astype(np.float32)


def check_axial(volume: Volume) -> None:
    """Raise Refusal (non-axial) for a canonical volume whose slices are not axial, or lie more than 20° askew.

    Slices of one plane have equal pixel sides; a coronal or sagittal stack does not, unless its voxels are cubes.
    """
    cosines = np.abs(np.diag(volume.affine[:3, :3][[2, 1, 0]] / volume.spacing))
    _, y, x = volume.spacing
    if max(y, x) > _SLICE_MM_RATIO * min(y, x) or cosines.min() < LEAST_AXIAL_COSINE:
        raise Refusal(
            "non-axial",
            f"its axial pixels are {y:.3g} × {x:.3g} mm and its axes up to "
            f"{np.degrees(np.arccos(min(1.0, float(cosines.min())))):.0f}° askew: expected a stack of axial slices",
            {"y_mm": float(y), "x_mm": float(x)},
        )


def _check_values(voxels: np.ndarray) -> None:
    if int(voxels.min()) == int(voxels.max()):
        raise Refusal("one-value", f"every voxel is {int(voxels.min())} HU: this is no scan")


def _check_length(scan: Volume, settings: Preparation) -> None:
    """Raise Refusal (too-short) for a scan that is shorter than what has to be covered, wherever it lies."""
    profile, length = settings.profile, scan.shape[0] * float(scan.spacing[0])
    _check_coverage(math.ceil(length / settings.spacing[0] - 1e-6), profile)


def _check_coverage(present: int, profile: BodyPartProfile) -> None:
    if present < profile.least_coverage * profile.slices:
        raise Refusal(
            "too-short",
            f"{present} of the {profile.slices} slices of the profile {profile.name} lie inside the scan; at least "
            f"{profile.least_coverage:.0%} must, as what is missing cannot be scored",
            {"slices_inside": present, "slices": profile.slices},
        )


def _outline(aligned: Aligned, numbers: np.ndarray, settings: Preparation) -> dict[str, Any]:
    """Return the body's median cross-section (cm²) and the share of air in it, over slices inside the scan."""
    _, y, x = settings.spacing
    rows, columns = (max(1, round(_COARSE_MM / side)) for side in (y, x))
    body = aligned.hu[numbers][:, ::rows, ::columns] > BODY_ABOVE_HU
    labels = np.zeros(body.shape, dtype=np.int32)
    if ndimage.label(body, output=labels) == 0:
        raise Refusal("no-body", f"no voxel above {BODY_ABOVE_HU:g} HU in the slices of the profile")
    body = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    whole = np.stack([np.asarray(ndimage.binary_fill_holes(part)) for part in body])
    area = np.median(whole.sum(axis=(1, 2))) * rows * y * columns * x / 100
    return {"area_cm2": round(float(area), 1), "lung_share": round(1 - float(body.sum() / whole.sum()), 4)}


def _check_part(facts: dict[str, Any], profile: BodyPartProfile) -> None:
    for name, (low, high), unit in (("area_cm2", profile.area_cm2, "cm²"), ("lung_share", profile.lung_share, "air")):
        if not low <= facts[name] <= high:
            raise Refusal(
                "wrong-body-part",
                f"where the profile {profile.name} looks, the body has a median cross-section of {facts['area_cm2']:g} "
                f"cm² with {facts['lung_share']:.0%} air; the profile expects {low:g} to {high:g} {unit}. This is "
                "another body part, or the registration failed",
                {**facts, "expected": [low, high]},
            )


def _box(values: np.ndarray, corner: tuple[int, ...], size: tuple[int, ...], outside: Any) -> np.ndarray:
    """Return a box of an array that may reach beyond it on any side."""
    box = np.full(size, outside, dtype=values.dtype)
    low = [max(c, 0) for c in corner]
    high = [min(c + n, length) for c, n, length in zip(corner, size, values.shape, strict=True)]
    if all(a < b for a, b in zip(low, high, strict=True)):
        target = tuple(slice(a - c, b - c) for a, b, c in zip(low, high, corner, strict=True))
        box[target] = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return box

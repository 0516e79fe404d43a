"""What the HU of a scan say of contrast without a network: soft-tissue histogram, bright components away from bone.

After the ways of Salimi et al. (Med Phys 2024) and TotalSegmentator's phase estimate, but without a segmentation of
organs: vessels and organs are what a threshold finds once bone is out, so that any body part and coverage will do. What
a scan does not show is NaN, never 0, which would be water.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
from scipy import ndimage

from fmct.tiling import Scan

GRID_MM = 3.0
VESSEL_HU = (130.0, 600.0)
BONE_HU, BONE_REACH_MM, BONE_RIM_MM = 350.0, 9.0, 3.0
COMPONENTS = 3
_EDGES = (-150, -50, -20, 0, 20, 40, 60, 80, 100, 130, 160, 200, 260, 350, 600)
_PERCENTILES = (25, 50, 75, 90, 95, 99, 99.5)
_OF_COMPONENT = ("ml", "mean_hu", "spread_hu", "p95_hu", "length_mm")
FEATURES: tuple[str, ...] = (
    *(f"share_{low}_{high}" for low, high in pairwise(_EDGES)),
    *(f"tissue_p{level:g}" for level in _PERCENTILES),
    *(f"vessel{k}_{name}" for k in range(1, COMPONENTS + 1) for name in _OF_COMPONENT),
    *("vessels_ml", "organ_ml", "organ_mean_hu", "bone_ml", "body_ml", "length_mm", "lung_share", "noise_hu"),
)
"""The names of `hu_features`, in order: shares of the body without bone, HU of its soft tissue, the largest bright
components and their lengths along the body, the largest enhanced organ, and what tells body parts apart."""


def scan_features(scan: Scan) -> np.ndarray:
    """Return `hu_features` of what is cut of a series (Preprocessing.scan)."""
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0) * np.asarray(scan.factor)
    along = int(np.argmax(np.abs(scan.affine[2, :3]) / np.linalg.norm(scan.affine[:3, :3], axis=0)))
    return hu_features(np.moveaxis(scan.voxels, along, 0), np.roll(spacing, -along), scale=scan.scale)


def hu_features(voxels: np.ndarray, spacing_mm: np.ndarray | Sequence[float], *, scale: float = 1.0) -> np.ndarray:
    """Return the (F,) float64 numbers that FEATURES names of (D, H, W) voxels, in HU when multiplied by `scale`.

    The first axis runs along the body. A scan without body gives NaN in all that asks for one.
    """
    values, spacing = _coarse(voxels, spacing_mm)
    values *= np.float32(scale)
    found = dict.fromkeys(FEATURES, math.nan)
    voxel_ml = float(spacing.prod()) / 1000
    body = _largest(ndimage.binary_opening(values > -300, iterations=1))
    held = int(body.sum())
    found |= {"body_ml": held * voxel_ml, "length_mm": len(values) * spacing[0]}
    found["lung_share"] = float(((values > -950) & (values < -500)).mean())
    if not held:
        return np.array([found[name] for name in FEATURES])
    bone = _bone(values, body, spacing)
    rest = body & ~bone
    found["bone_ml"] = int(bone.sum()) * voxel_ml
    counts, _ = np.histogram(values[rest], bins=np.array(_EDGES, dtype=np.float64))
    found |= dict(zip(FEATURES, (counts / held).tolist(), strict=False))
    smooth = ndimage.gaussian_filter(values, 1.0)
    tissue = rest & (smooth > -20)
    if tissue.any():
        levels = np.percentile(smooth[tissue], _PERCENTILES)
        found |= {f"tissue_p{level:g}": float(v) for level, v in zip(_PERCENTILES, levels, strict=True)}
        found["noise_hu"] = float(np.median(np.abs(values - smooth)[tissue]))
    found |= _vessels(values, rest, spacing)
    organ = _largest(rest & (smooth > 80) & (smooth < 220))
    if organ.any():
        found |= {"organ_ml": int(organ.sum()) * voxel_ml, "organ_mean_hu": float(smooth[organ].mean())}
    return np.array([found[name] for name in FEATURES])


def _coarse(voxels: np.ndarray, spacing_mm: np.ndarray | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 block means on a grid of about GRID_MM, and its spacing."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    factors = np.clip(np.rint(GRID_MM / spacing).astype(int), 1, np.maximum(np.asarray(voxels.shape), 1))
    whole = [n // f * f for n, f in zip(voxels.shape, factors, strict=True)]
    cut = voxels[tuple(slice(0, n) for n in whole)].astype(np.float32)
    for axis, factor in enumerate(factors.tolist()):
        parts = (*cut.shape[:axis], cut.shape[axis] // factor, factor, *cut.shape[axis + 1 :])
        cut = cut.reshape(parts).mean(axis=axis + 1) if factor > 1 else cut
    return np.ascontiguousarray(cut), spacing * factors


def _bone(values: np.ndarray, body: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return what is bone: dense shells closed over the spongy bone that they hold, with a rim of partial volume.

    Calcium and a dense bolus count as bone too: what is left is surely not.
    """
    side = [max(1, round(BONE_REACH_MM / mm)) | 1 for mm in spacing]
    dense = body & (values > BONE_HU)
    closed = ndimage.grey_closing(dense.astype(np.uint8), size=side).astype(bool)
    rim = [2 * max(1, round(BONE_RIM_MM / mm)) + 1 for mm in spacing]
    return body & ndimage.maximum_filter(closed.view(np.uint8), size=rim).astype(bool)


def _vessels(values: np.ndarray, rest: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Return the volume of all bright voxels, and of the COMPONENTS largest components what _OF_COMPONENT names."""
    voxel_ml = float(spacing.prod()) / 1000
    bright = rest & (values > VESSEL_HU[0]) & (values < VESSEL_HU[1])
    labels, number = _components(bright)
    found = {"vessels_ml": int(bright.sum()) * voxel_ml}
    sizes = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    boxes = ndimage.find_objects(labels) if number else []
    for k, label in enumerate(np.argsort(-sizes, kind="stable")[:COMPONENTS].tolist(), start=1):
        box = boxes[label]
        inside = values[box][labels[box] == label + 1]
        numbers = (
            len(inside) * voxel_ml,
            float(inside.mean()),
            float(inside.std()),
            float(np.percentile(inside, 95)),
            (box[0].stop - box[0].start) * float(spacing[0]),
        )
        found |= {f"vessel{k}_{name}": value for name, value in zip(_OF_COMPONENT, numbers, strict=True)}
    return found


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the label map of a mask's components (6 neighbours), from 1 on, and their number."""
    return cast(tuple[np.ndarray, int], ndimage.label(mask))


def _largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest component of a mask."""
    labels, number = _components(mask)
    if number < 2:
        return mask
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))

"""The resolution pyramid: level 0 is the scan's own grid; each further level is a box mean, finest axes first.

A voxel i of a level with factor f covers the level-0 voxels i·f … i·f + f − 1, so its centre lies at level-0
index i·f + (f − 1)/2. A side that does not divide is completed by repeating its last voxel.
"""

import math
from collections.abc import Sequence

import numpy as np

from fmct.shapes import Triple, TripleF

_SLAB_VOXELS = 1 << 18  # what is averaged at a time, so that it stays in the processor's cache
SMALLEST_SIDE = 16  # a level with fewer voxels than this on every axis would never be read


def next_step(spacing_mm: Sequence[float]) -> Triple:
    """Return which axes the next level halves (2) or keeps (1): those within √2 of the finest, all when isotropic."""
    finest = min(spacing_mm)
    z, y, x = (2 if spacing < finest * 2**0.5 else 1 for spacing in spacing_mm)
    return (z, y, x)


def level_factors(shape: Sequence[int], spacing_mm: Sequence[float]) -> list[Triple]:
    """Return the factor (z, y, x) of every level, beginning with (1, 1, 1), down to SMALLEST_SIDE voxels."""
    factors: list[Triple] = [(1, 1, 1)]
    while True:
        last = factors[-1]
        sides = [-(-n // f) for n, f in zip(shape, last, strict=True)]
        if max(sides) <= SMALLEST_SIDE:
            return factors
        # An axis of one or two voxels (a thin slab) is not halved away, nor does it keep the others from it.
        step = next_step([s * f if n > 2 else math.inf for s, f, n in zip(spacing_mm, last, sides, strict=True)])
        z, y, x = (f * k for f, k in zip(last, step, strict=True))
        factors.append((z, y, x))


def reduce(voxels: np.ndarray, step: Triple) -> np.ndarray:
    """Return the box mean of (D, H, W) voxels over blocks of `step` voxels, each 1 or 2, in the same dtype.

    int16 is rounded from the exact sum, halves to the even neighbour, so that no level drifts from the one before;
    other types are averaged in float64. An odd side is completed with its last voxel.
    """
    shape = tuple(-(-n // k) for n, k in zip(voxels.shape, step, strict=True))
    out = np.empty(shape, dtype=voxels.dtype)
    planes = max(1, _SLAB_VOXELS // max(1, voxels.shape[1] * voxels.shape[2]))
    for first in range(0, shape[0], planes):
        slab = voxels[first * step[0] : (first + planes) * step[0]]
        odd = [(0, n % k) for n, k in zip(slab.shape, step, strict=True)]
        if any(after for _, after in odd):
            slab = np.pad(slab, odd, mode="edge")
        out[first : first + planes] = _mean_of_blocks(slab, step)
    return out


def _mean_of_blocks(slab: np.ndarray, step: Triple) -> np.ndarray:
    """Return the block means of a slab whose sides divide."""
    whole = slab.dtype == np.int16
    dtype = np.int32 if whole else np.float64
    if step[2] == 2 and whole:
        # A pair of int16 is one int32: its halves come apart by shifts, many times faster than by strides of two.
        pairs = np.ascontiguousarray(slab).view(np.int32)
        total = (pairs >> 16) + ((pairs << 16) >> 16)
    elif step[2] == 2:
        total = np.add(slab[:, :, 0::2], slab[:, :, 1::2], dtype=dtype)
    else:
        total = slab
    if step[1] == 2:
        total = np.add(total[:, 0::2], total[:, 1::2], dtype=dtype)
    if step[0] == 2:
        total = np.add(total[0::2], total[1::2], dtype=dtype)
    count = step[0] * step[1] * step[2]
    return _rounded_quotient(total, count).astype(slab.dtype) if whole else (total / count).astype(slab.dtype)


def _rounded_quotient(total: np.ndarray, count: int) -> np.ndarray:
    """Return total / count, a power of two, rounded to the nearest integer, halves to the even one."""
    if count == 1:
        return total
    shift = count.bit_length() - 1
    return (total + ((total >> shift) & 1) + (count // 2 - 1)) >> shift


def build(voxels: np.ndarray, spacing_mm: Sequence[float]) -> list[tuple[Triple, np.ndarray]]:
    """Return [(factor, voxels)] of every level, level 0 first and unchanged."""
    levels = [((1, 1, 1), voxels)]
    for factor in level_factors(voxels.shape, spacing_mm)[1:]:
        z, y, x = (now // before for now, before in zip(factor, levels[-1][0], strict=True))
        levels.append((factor, reduce(levels[-1][1], (z, y, x))))
    return levels


def level_spacing(spacing_mm: Sequence[float], factor: Triple) -> TripleF:
    """Return the spacing (z, y, x) in mm of a level."""
    z, y, x = (s * f for s, f in zip(spacing_mm, factor, strict=True))
    return (z, y, x)


def choose_level(spacing_mm: Sequence[float], factors: Sequence[Triple], wanted_mm: Sequence[float]) -> int:
    """Return the coarsest level whose spacing is ≤ the wanted one wherever level 0 allows that (5 % tolerance)."""
    best = 0
    for number, factor in enumerate(factors):
        if all(f == 1 or s * f <= w * 1.05 for s, f, w in zip(spacing_mm, factor, wanted_mm, strict=True)):
            best = number
    return best


def level_index(index: np.ndarray, factor: Sequence[int]) -> np.ndarray:
    """Return the level's fractional voxel index (..., 3) of a level-0 fractional index (..., 3)."""
    f = np.asarray(factor, dtype=np.float64)
    return (np.asarray(index, dtype=np.float64) - (f - 1) / 2) / f

"""The resolution pyramid: level 0 is the scan's own grid; each further level is a box mean, finest axes first.

A voxel i of a level with factor f covers the level-0 voxels i·f … i·f + f − 1, so its centre lies at level-0
index i·f + (f − 1)/2. A side that does not divide is completed by repeating its last voxel.
"""

from collections.abc import Sequence

import numpy as np

from fmct.shapes import Triple, TripleF

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
        step = next_step([s * f for s, f in zip(spacing_mm, last, strict=True)])
        # An axis of a few voxels (a thin slab) is not halved away.
        z, y, x = (f * (k if n > 2 else 1) for f, k, n in zip(last, step, sides, strict=True))
        if (z, y, x) == last:
            return factors
        factors.append((z, y, x))


def reduce(voxels: np.ndarray, step: Triple) -> np.ndarray:
    """Return the box mean of (D, H, W) voxels over blocks of `step` voxels, each 1 or 2, in the same dtype.

    Integers are rounded half up from the exact sum; an odd side is completed with its last voxel.
    """
    odd = [(0, n % k) for n, k in zip(voxels.shape, step, strict=True)]
    if any(after for _, after in odd):
        voxels = np.pad(voxels, odd, mode="edge")
    if voxels.dtype.kind != "i":
        d, h, w = (n // k for n, k in zip(voxels.shape, step, strict=True))
        blocks = voxels.reshape(d, step[0], h, step[1], w, step[2])
        return blocks.mean(axis=(1, 3, 5), dtype=np.float64).astype(voxels.dtype)
    total, count = voxels, 1
    for axis, k in enumerate(step):
        if k == 2:
            first = [slice(None)] * 3
            second = [slice(None)] * 3
            first[axis], second[axis] = slice(0, None, 2), slice(1, None, 2)
            total = np.add(total[tuple(first)], total[tuple(second)], dtype=np.int32)
            count *= 2
    return total if count == 1 else ((total + count // 2) // count).astype(voxels.dtype)


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

"""Where the body is: a coarse pyramid level turned into sums that answer "how much body is in this box" at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmct.pyramid import level_index
from fmct.shapes import TripleF

COARSE_SIDE = 64  # voxels per axis, at most: fine enough for a 36 mm view of a 500 mm body


@dataclass(frozen=True)
class Coarse:
    """A scan's body seen from far.

    factor: level-0 voxels per coarse voxel. sums: (d + 1, h + 1, w + 1) int32, the number of body voxels before each
    corner. box: the body's extent (low, high) in level-0 index coordinates, where a scan of n voxels reaches from −0.5
    to n − 0.5. values: the [low, high] percentiles, or None where none were asked for.
    """

    factor: tuple[int, int, int]
    sums: np.ndarray
    box: tuple[TripleF, TripleF]
    values: tuple[float, float] | None = None

    def body_fraction(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the share of body, (M,), in boxes with corners `low`, `high` (M, 3) in level-0 index coordinates.

        What lies outside the scan counts as air. Box faces are rounded to coarse voxels.
        """
        shape = np.array(self.sums.shape) - 1
        # Corner c of the coarse grid lies between voxels c − 1 and c: half a voxel before the centre of voxel c.
        a = np.rint(level_index(low, self.factor) + 0.5).astype(np.int64)
        b = np.maximum(np.rint(level_index(high, self.factor) + 0.5).astype(np.int64), a + 1)
        volume = (b - a).prod(axis=1)
        a, b = np.clip(a, 0, shape), np.clip(b, 0, shape)
        total = np.zeros(len(a), dtype=np.int64)
        for corner in range(8):
            z, y, x = (np.where(corner >> axis & 1, b[:, axis], a[:, axis]) for axis in range(3))
            sign = -1 if (corner.bit_count() % 2 == 0) else 1
            total += sign * self.sums[z, y, x].astype(np.int64)
        return total / volume

    def middle(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the mean places (M, 2) of the body along y and x between level-0 index coordinates (M,) along z.

        Without any body there, the middle of the scan.
        """
        depth = len(self.sums) - 1
        first, last = (np.rint((end + 0.5) / self.factor[0]).astype(np.int64) for end in (low, high))
        first = np.clip(first, 0, depth - 1)
        last = np.clip(last, first + 1, depth)
        found = []
        for totals, factor in ((self.sums[:, :, -1], self.factor[1]), (self.sums[:, -1, :], self.factor[2])):
            counts = np.diff((totals[last] - totals[first]).astype(np.float64), axis=1)
            counts[counts.sum(axis=1) == 0] = 1.0
            centre = (counts @ np.arange(counts.shape[1])) / counts.sum(axis=1)
            found.append((centre + 0.5) * factor - 0.5)
        return np.stack(found, axis=1)


def coarse_level(shapes: Sequence[Sequence[int]], side: int = COARSE_SIDE) -> int:
    """Return the first level that has at most `side` voxels on every axis, or the coarsest."""
    for number, shape in enumerate(shapes):
        if max(shape) <= side:
            return number
    return len(shapes) - 1


def find_body(
    voxels: np.ndarray,
    factor: tuple[int, int, int],
    shape: Sequence[int],
    *,
    above: float | None,
    values: tuple[float, float] | None = None,
) -> Coarse:
    """Return where `voxels` (a coarse level, in the scan's units) exceed `above`; None takes their mean.

    shape: the scan's level-0 shape. A scan without any body gets the whole scan as its box.
    """
    threshold = float(voxels.mean()) if above is None else above
    body = voxels > threshold
    sums = np.zeros([n + 1 for n in body.shape], dtype=np.int32)
    sums[1:, 1:, 1:] = body.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32).cumsum(2, dtype=np.int32)
    low, high = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(body.any(axis=others))
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, body.shape[axis] - 1)
        low.append(first * factor[axis] - 0.5)
        high.append(min((last + 1) * factor[axis], shape[axis]) - 0.5)
    return Coarse(factor, sums, ((low[0], low[1], low[2]), (high[0], high[1], high[2])), values)

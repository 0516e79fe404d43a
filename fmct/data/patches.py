"""Patches of a volume: cut around a voxel, placed as tiles, and put together again."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from fmct.shapes import Triple


def cut(values: np.ndarray, centre: Sequence[int], size: Triple, *, fill: float = 0.0) -> np.ndarray:
    """Return (..., d, h, w) of `size` from (..., D, H, W) with voxel `centre` at index size // 2 of every axis.

    Whatever lies outside, before or behind, is `fill`: a lesion at a face or corner stays in the middle.
    """
    out = np.full((*values.shape[:-3], *size), fill, dtype=values.dtype)
    low = [int(c) - n // 2 for c, n in zip(centre, size, strict=True)]
    source, target = [], []
    for first, n, length in zip(low, size, values.shape[-3:], strict=True):
        start, stop = max(first, 0), min(first + n, length)
        if stop <= start:
            return out
        source.append(slice(start, stop))
        target.append(slice(start - first, stop - first))
    out[(..., *target)] = values[(..., *source)]
    return out


def tile_starts(shape: Sequence[int], size: Triple, *, overlap: float = 0.0) -> list[Triple]:
    """Return the first voxels of tiles of `size` that cover `shape`; the last one is shifted back to the border.

    An axis shorter than the tile has the one tile that starts at 0 and reaches past its end.
    """
    axes = []
    for length, n in zip(shape, size, strict=True):
        step = max(1, int(n * (1 - overlap)))
        starts = list(range(0, max(length - n, 0) + 1, step))
        if starts[-1] + n < length:
            starts.append(length - n)
        axes.append(starts)
    return [(z, y, x) for z, y, x in product(*axes)]


def tiles(values: np.ndarray, starts: Sequence[Triple], size: Triple, *, fill: float = 0.0) -> Iterator[np.ndarray]:
    """Yield the tile (..., d, h, w) at each start of (..., D, H, W), completed with `fill` past the end."""
    for start in starts:
        yield cut(values, [a + n // 2 for a, n in zip(start, size, strict=True)], size, fill=fill)


class Assembly:
    """Tiles put together: the mean where they overlap."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._sum = np.zeros(tuple(shape), dtype=np.float32)
        self._count = np.zeros(tuple(shape), dtype=np.float32)

    def add(self, tile: np.ndarray, start: Triple) -> None:
        """Add a tile (d, h, w); what of it lies outside the volume is left away."""
        box = tuple(slice(a, min(a + n, m)) for a, n, m in zip(start, tile.shape, self._sum.shape, strict=True))
        inner = tuple(slice(0, s.stop - s.start) for s in box)
        self._sum[box] += tile[inner]
        self._count[box] += 1

    def result(self) -> np.ndarray:
        """Return (D, H, W) float32. Raises ValueError when a voxel is in no tile."""
        if not self._count.all():
            raise ValueError(f"{int((self._count == 0).sum())} voxels are in no tile.")
        return self._sum / self._count

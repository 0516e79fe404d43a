"""Dense feature maps of a scan, and their first three principal components as colours."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from fmct.errors import DataError
from fmct.shapes import Triple
from fmct.windows import Window, apply_windows

_BATCH = 32


@dataclass(frozen=True)
class FeatureMap:
    """Patch features on a regular grid over a scan.

    features: (d, h, w, E) float32. hu: (d, h, w), mean HU of each patch. origin, step: voxel index (z, y, x) of the
    centre of cell 0, and the distance of neighbouring cells in voxels.
    """

    features: np.ndarray
    hu: np.ndarray
    origin: tuple[float, float, float]
    step: tuple[float, float, float]


def feature_map(
    encoder: Callable[[torch.Tensor], torch.Tensor],
    hu: np.ndarray,
    *,
    windows: Sequence[Window],
    size: Triple,
    patch: Triple,
    shifts: int = 2,
) -> FeatureMap:
    """Return the map of one scan (D, H, W) at the encoder's spacing.

    encoder: (B, C, *size) → (B, N, E) patch tokens. Windows overlap by half and are averaged, their borders least;
    `shifts` grids per axis, displaced by a fraction of the patch, make the map that much finer than the patch.
    Raises DataError when the scan is smaller than `size` or `shifts` does not divide the patch.
    """
    if any(n < s for n, s in zip(hu.shape, size, strict=True)) or any(p % shifts for p in patch):
        raise DataError(f"feature map: a scan of {hu.shape} voxels, windows of {size}, patch {patch}, {shifts} shifts.")
    stride = [p // shifts for p in patch]
    cells = [(n - p) // s + 1 for n, p, s in zip(hu.shape, patch, stride, strict=True)]
    # A displaced grid needs that much room; a scan that has none is continued by its last voxel, as no cell's own.
    room = [(0, max(0, s + p - t - n)) for n, s, p, t in zip(hu.shape, size, patch, stride, strict=True)]
    scan = np.pad(hu, room, mode="edge").astype(np.float32)
    total, weights = None, np.zeros(cells, dtype=np.float32)
    grid = [s // p for s, p in zip(size, patch, strict=True)]
    weight = _weight(grid)
    places = list(_starts(scan.shape, size, patch, shifts))
    for first in range(0, len(places), _BATCH):
        batch = places[first : first + _BATCH]
        crops = np.stack([scan[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] for start in batch])
        with torch.inference_mode():
            tokens = encoder(apply_windows(torch.from_numpy(crops), windows)).float().cpu().numpy()
        if total is None:
            total = np.zeros((*cells, tokens.shape[-1]), dtype=np.float32)
        for start, block in zip(batch, tokens.reshape(len(batch), *grid, -1), strict=True):
            first_cell = [a // t for a, t in zip(start, stride, strict=True)]
            inside = [min(g, -(-(c - f) // shifts)) for g, c, f in zip(grid, cells, first_cell, strict=True)]
            where = tuple(slice(f, f + shifts * (k - 1) + 1, shifts) for f, k in zip(first_cell, inside, strict=True))
            kept = tuple(slice(0, k) for k in inside)
            total[where] += (block * weight[..., None])[kept]
            weights[where] += weight[kept]
    assert total is not None
    assert weights.min() > 0
    z, y, x = ((p - 1) / 2 for p in patch)
    a, b, c = (float(s) for s in stride)
    return FeatureMap(total / weights[..., None], _patch_means(hu, patch, stride, cells), (z, y, x), (a, b, c))


@dataclass(frozen=True)
class ColourBasis:
    """Three principal components of features, and the range of each that spans a colour channel."""

    mean: np.ndarray
    components: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def fit(cls, maps: Sequence[FeatureMap], *, body_above: float = -500.0) -> "ColourBasis":
        """Return the basis of the body cells of some maps; channels span the 2nd to 98th percentile."""
        rows = np.concatenate([m.features[m.hu > body_above] for m in maps]).astype(np.float64)
        if len(rows) < 4:
            raise DataError("colours: fewer than four cells of these scans are body.")
        mean = rows.mean(axis=0)
        vectors = np.linalg.eigh(np.cov(rows - mean, rowvar=False))[1][:, ::-1][:, :3]
        # A component's sign is arbitrary; the largest loading is made positive, so that colours are reproducible.
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(3)])
        components = vectors * signs
        low, high = np.percentile((rows - mean) @ components, [2, 98], axis=0)
        return cls(mean, components, low, np.maximum(high, low + 1e-12))

    def colours(self, features: FeatureMap) -> np.ndarray:
        """Return (d, h, w, 3) float64 in 0..1: the components as red, green and blue."""
        values = (features.features - self.mean) @ self.components
        return np.clip((values - self.low) / (self.high - self.low), 0, 1)


def _starts(shape: Sequence[int], size: Triple, patch: Triple, shifts: int) -> Iterator[tuple[int, ...]]:
    """Yield window starts: for each displaced grid, steps of about half a window on whole patches, to the far end."""
    axes = []
    for n, s, p in zip(shape, size, patch, strict=True):
        found: set[int] = set()
        for shift in range(0, p, p // shifts):
            last = (n - s - shift) // p * p + shift
            found |= {*range(shift, last, max(p, s // 2 // p * p)), last}
        axes.append(sorted(found))
    yield from product(*axes)


def _weight(grid: Sequence[int]) -> np.ndarray:
    """Return (gd, gh, gw) weights that fall linearly from a window's centre to its border."""
    axes = [1 - np.abs(np.arange(g) - (g - 1) / 2) / (g / 2 + 0.5) for g in grid]
    return np.einsum("i,j,k->ijk", *axes).astype(np.float32)


def _patch_means(hu: np.ndarray, patch: Triple, stride: Sequence[int], cells: Sequence[int]) -> np.ndarray:
    means = hu.astype(np.float64)
    for axis, (p, s, count) in enumerate(zip(patch, stride, cells, strict=True)):
        table = np.concatenate([np.zeros_like(np.take(means, [0], axis)), means.cumsum(axis)], axis)
        starts = np.arange(count) * s
        means = (np.take(table, starts + p, axis) - np.take(table, starts, axis)) / p
    return means

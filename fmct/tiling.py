"""Tiles of a series: where they lie on a resampled grid, how much of the body each holds, and their values.

A series is never resampled as a whole: a tile's crop is cut from a pyramid level and only the crop is resampled.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fmct.axes import linear_axis
from fmct.pyramid import level_index
from fmct.resample import resample
from fmct.shapes import Triple, TripleF, triple, triple_of_floats
from fmct.windows import Curve


@dataclass(frozen=True)
class Scan:
    """One pyramid level of a series in the encoder's orientation, and what holds for the whole series.

    voxels: (d, h, w) of the level with `factor` (z, y, x); times `scale` they are in the series' units. shape, affine:
    of level 0. air: the value around the series; foreground_above: what is body; both in units. values: two
    percentiles of the series where the encoder asks for them, in units. curve: what normalises the series, if anything.
    """

    voxels: np.ndarray
    factor: Triple
    shape: Triple
    affine: np.ndarray
    air: float
    foreground_above: float
    values: tuple[float, float] | None = None
    scale: float = 1.0
    curve: Curve | None = None


@dataclass(frozen=True)
class Grid:
    """The resampled grid that tiles are cut from, about the same centre as the series.

    shape: voxels (z, y, x) that cover the series. spacing_mm: of the grid; native_mm: of the series. origin: level-0
    fractional index of grid voxel (0, 0, 0). affine: (4, 4), grid index (z, y, x) → RAS mm. tile: voxels of one tile.
    starts: (T, 3) grid index of every tile's first voxel, negative where a tile reaches into the air around the series.
    """

    shape: Triple
    spacing_mm: TripleF
    native_mm: TripleF
    origin: TripleF
    affine: np.ndarray
    tile: Triple
    starts: np.ndarray

    def level_coordinates(self, factor: Triple) -> tuple[np.ndarray, np.ndarray]:
        """Return (start, step), each (3,): grid index j lies at the level's fractional index start + j · step."""
        start = level_index(np.asarray(self.origin), factor)
        return start, np.asarray(self.spacing_mm) / (np.asarray(self.native_mm) * np.asarray(factor))


def coarse_level(shapes: Sequence[Sequence[int]], side: int) -> int:
    """Return the number of the first level with at most `side` voxels on every axis, else of the last."""
    return next((number for number, shape in enumerate(shapes) if max(shape) <= side), len(shapes) - 1)


def plan_tiles(
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    size: Triple,
    spacing_mm: TripleF | None,
    overlap: float,
    whole: bool = False,
    along: int | None = None,
) -> Grid:
    """Return the grid and the tiles' places for a series of (D, H, W) `shape` and level-0 `affine`.

    spacing_mm None stretches the series over one tile of `size`. whole makes one tile: the grid, each side completed to
    a multiple of `size`. overlap: least share of a tile's side that neighbours have in common. along: tiles follow one
    another along this axis alone, and lie in the middle of the others (see `about_the_body`).
    """
    native = np.linalg.norm(affine[:3, :3], axis=0)
    extent = native * np.asarray(shape)
    sides = np.asarray(size)
    spacing = extent / sides if spacing_mm is None else np.asarray(spacing_mm)
    # A hair over a whole number of voxels is not another voxel.
    count = np.maximum(np.ceil(extent / spacing - 1e-6), 1).astype(np.int64)
    if whole:
        sides = -(-count // sides) * sides
    axes = [_starts(int(n), int(side), overlap) for n, side in zip(count, sides, strict=True)]
    if along is not None:
        middle = [np.array([(int(n) - int(side)) // 2]) for n, side in zip(count, sides, strict=True)]
        axes = [starts if axis == along else middle[axis] for axis, starts in enumerate(axes)]
    origin = (np.asarray(shape) - 1) / 2 - (count - 1) / 2 * spacing / native
    placed = np.eye(4)
    placed[:3, :3] = affine[:3, :3] * (spacing / native)
    placed[:3, 3] = affine[:3, :3] @ origin + affine[:3, 3]
    return Grid(
        shape=triple(count.tolist(), "grid"),
        spacing_mm=triple_of_floats(spacing.tolist(), "spacing"),
        native_mm=triple_of_floats(native.tolist(), "spacing"),
        origin=triple_of_floats(origin.tolist(), "origin"),
        affine=placed,
        tile=triple(sides.tolist(), "tile"),
        starts=np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3),
    )


def about_the_body(scan: Scan, grid: Grid, along: int) -> Grid:
    """Return a grid whose tiles follow one another along one axis with each about the body's middle on the other two.

    The middle is the mean place of the foreground in what the tile shows of the axis `along`. A tile stays inside the
    series where that is larger than a tile; one that shows no foreground stays where it is.
    """
    body = scan.voxels > scan.foreground_above / scan.scale
    first, step = grid.level_coordinates(scan.factor)
    edges = first[along] + step[along] * (grid.starts[:, along, None] + np.array([-0.5, grid.tile[along] - 0.5]))
    low, high = np.clip(np.rint(edges + 0.5).astype(np.int64), 0, body.shape[along]).T
    starts = grid.starts.copy()
    for axis in range(3):
        if axis == along:
            continue
        other = 3 - axis - along
        profile = np.moveaxis(body.sum(axis=other, dtype=np.int64), 0 if along < axis else 1, 0)  # (along, axis)
        before = np.concatenate([np.zeros_like(profile[:1]), profile.cumsum(axis=0)])
        held = before[high] - before[low]
        room = grid.shape[axis] - grid.tile[axis]
        for number, counts in enumerate(held):
            if counts.sum() == 0 or room <= 0:
                continue
            middle = (np.average(np.arange(len(counts)), weights=counts) - first[axis]) / step[axis]
            starts[number, axis] = int(np.clip(np.rint(middle - (grid.tile[axis] - 1) / 2), 0, room))
    return replace(grid, starts=starts)


def plan_slabs(shape: Sequence[int], affine: np.ndarray, *, size: Triple, spacing_mm: TripleF) -> Grid:
    """Return the grid and the places of consecutive slabs along z, in order, none overlapping, each the centre crop.

    A spacing of 0 along an axis is the series' own. Together the slabs cover the series in z about its middle, so that
    the outermost may reach into the air around it; in-plane, what lies outside the centre is in no slab.
    """
    native = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    spacing = triple_of_floats([s or n for s, n in zip(spacing_mm, native, strict=True)], "spacing")
    grid = plan_tiles(shape, affine, size=size, spacing_mm=spacing, overlap=0.0)
    count = -(-grid.shape[0] // size[0])
    first = [(n - side) // 2 for n, side in zip(grid.shape, size, strict=True)]
    first[0] = (grid.shape[0] - count * size[0]) // 2
    starts = np.array([[first[0] + number * size[0], first[1], first[2]] for number in range(count)], dtype=np.int64)
    return replace(grid, starts=starts)


def foreground_fractions(scan: Scan, grid: Grid) -> np.ndarray:
    """Return the (T,) share of each tile's level voxels that are foreground. What lies outside the series is not."""
    threshold = scan.foreground_above / scan.scale
    start, step = grid.level_coordinates(scan.factor)
    low = np.floor(start + (grid.starts - 0.5) * step + 0.5).astype(np.int64)
    high = np.floor(start + (grid.starts + np.asarray(grid.tile) - 0.5) * step + 0.5).astype(np.int64)
    high = np.maximum(high, low + 1)
    counts = [
        np.count_nonzero(scan.voxels[z0:z1, y0:y1, x0:x1] > threshold)
        for (z0, y0, x0), (z1, y1, x1) in zip(np.maximum(low, 0).tolist(), np.maximum(high, 0).tolist(), strict=True)
    ]
    return np.asarray(counts) / (high - low).prod(axis=1)


def cut_tile(scan: Scan, grid: Grid, start: np.ndarray, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the values (D, H, W), float32 in units, of the tile whose first voxel is `start` on the grid."""
    origin, step = grid.level_coordinates(scan.factor)
    axes, box = [], []
    for axis, length in enumerate(scan.voxels.shape):
        positions = origin[axis] + step[axis] * (start[axis] + np.arange(grid.tile[axis]))
        first = int(np.clip(np.floor(positions[0]), 0, length - 1))
        stop = int(np.clip(np.ceil(positions[-1]) + 1, first + 1, length))
        edge = scan.shape[axis] / scan.factor[axis] - 0.5
        axes.append(linear_axis(positions - first, stop - first, low=-0.5 - first, high=edge - first))
        box.append(slice(first, stop))
    crop = torch.from_numpy(np.ascontiguousarray(scan.voxels[tuple(box)])).to(device)
    return resample(crop, axes, air=scan.air / scan.scale).mul_(scan.scale)


def _starts(count: int, size: int, overlap: float) -> np.ndarray:
    """Return the first voxels of the fewest tiles of `size` that cover `count` voxels, evenly spread."""
    if count <= size:
        return np.array([-((size - count) // 2)])
    stride = max(1, math.floor(size * (1 - overlap)))
    tiles = math.ceil((count - size) / stride) + 1
    return np.rint(np.linspace(0, count - size, tiles)).astype(np.int64)

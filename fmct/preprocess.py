"""Preprocessing, the one path from a Volume to a tensor. It travels inside every published encoder.

The path is the one that training views take: canonical axes, the pyramid level whose spacing is ≤ the wanted one,
a crop of that level, separable linear resampling of the crop, windows last. A series is never resampled as a whole.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fmct import pyramid
from fmct.errors import ArtefactError, ConfigError, DataError
from fmct.resample import linear_axis, resample
from fmct.shapes import Triple, TripleF, triple, triple_of_floats
from fmct.volume import AIR_HU, CANONICAL, Volume

FORMAT = ("fmct-preprocess", "1.0")
MODES = ("whole", "resize", "tiles")
POOLS = ("foreground", "mean")


@dataclass(frozen=True)
class Window:
    """An intensity window: values are clipped to [low, high] (HU for CT) and mapped to (value − shift) / scale.

    shift and scale default to low and high − low, which maps the window to [0, 1].
    """

    low: float
    high: float
    name: str = ""
    shift: float | None = None
    scale: float | None = None

    @property
    def offset_and_scale(self) -> tuple[float, float]:
        """The (shift, scale) in force."""
        scale = self.high - self.low if self.scale is None else self.scale
        return (self.low if self.shift is None else self.shift), scale


def apply_windows(values: torch.Tensor, windows: Sequence[Window]) -> torch.Tensor:
    """Return (B, C, D, H, W) float32 channels, one per window, of (B, D, H, W) values (HU for CT)."""
    values = values.float()
    channels = torch.empty((values.shape[0], len(windows), *values.shape[1:]), device=values.device)
    for number, window in enumerate(windows):
        shift, scale = window.offset_and_scale
        channels[:, number] = (values.clamp(window.low, window.high) - shift) / scale
    return channels


@dataclass(frozen=True)
class InputSpec:
    """How a whole series becomes encoder input.

    mode: `tiles` cuts overlapping tiles of size_voxels at spacing_mm; `whole` takes the series at spacing_mm as one
    input, each side completed with air to a multiple of size_voxels; `resize` resamples the whole field of view to
    size_voxels, whatever spacing that gives.
    overlap: least fraction of a tile's side shared with its neighbour. skip_air: tiles with a smaller fraction of
    foreground (voxels above foreground_above, HU for CT) are left out, the one with most foreground never.
    pool: `foreground` weights tiles by their foreground fraction, `mean` does not.
    """

    mode: str = "tiles"
    size_voxels: Triple = (96, 96, 96)
    spacing_mm: TripleF | None = (1.0, 1.0, 1.0)
    overlap: float = 0.25
    skip_air: float = 0.05
    pool: str = "foreground"
    foreground_above: float = -500.0

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.pool not in POOLS:
            raise ConfigError(
                f"input: mode is one of {MODES} and pool one of {POOLS}; got {self.mode!r}, {self.pool!r}."
            )
        if min(self.size_voxels) < 1:
            raise ConfigError(f"input: size_voxels are three positive integers (z, y, x); got {self.size_voxels}.")
        if self.mode == "resize" and self.spacing_mm is not None:
            raise ConfigError("input: mode resize takes the spacing from the series; leave spacing_mm out (null).")
        if self.mode != "resize" and (self.spacing_mm is None or not all(0 < s < math.inf for s in self.spacing_mm)):
            raise ConfigError(
                f"input: mode {self.mode} needs spacing_mm, three positive numbers; got {self.spacing_mm}."
            )
        if not (0 <= self.overlap < 1 and 0 <= self.skip_air < 1):
            raise ConfigError(f"input: overlap and skip_air lie in [0, 1); got {self.overlap} and {self.skip_air}.")


@dataclass(frozen=True)
class Grid:
    """The resampled grid that tiles are cut from, about the same centre as the series.

    shape: voxels (z, y, x) that cover the series; spacing_mm; native_shape and native_mm of the
    series;
    origin: level-0 fractional index of grid voxel (0, 0, 0);
    affine: (4, 4), grid index (z, y, x) → RAS mm; starts: (T, 3) grid index of every tile's first voxel, which is
    negative where a tile reaches into the air around the series.
    """

    shape: Triple
    spacing_mm: TripleF
    native_shape: Triple
    native_mm: TripleF
    origin: TripleF
    affine: np.ndarray
    tile: Triple
    starts: np.ndarray


@dataclass(frozen=True)
class Tiles:
    """Encoder input of one series, air tiles already left out.

    tensor: (T, C, D, H, W) float32. start_voxels: (T, 3) int64, first voxel on `grid`. start_mm: (T, 3) float64, RAS
    position of that voxel's centre. foreground: (T,) float32, fraction of foreground voxels. spacing_mm: (T, 3)
    float32, the same for every tile.
    """

    tensor: torch.Tensor
    start_voxels: np.ndarray
    start_mm: np.ndarray
    foreground: torch.Tensor
    spacing_mm: torch.Tensor
    grid: Grid


@dataclass(frozen=True)
class Preprocessing:
    """From a Volume to encoder input: modality (checked), orientation, InputSpec, and one channel per window."""

    windows: tuple[Window, ...]
    input: InputSpec = dataclasses.field(default_factory=InputSpec)
    modality: str = "CT"
    orientation: str = CANONICAL

    def __post_init__(self) -> None:
        if not self.windows:
            raise ConfigError("preprocessing needs at least one window, such as {low: -1000, high: 1000}.")
        for window in self.windows:
            if not window.low < window.high or not math.isfinite(window.offset_and_scale[1]) or window.scale == 0:
                raise ConfigError(f"window {window.name or window}: expected low < high and a scale other than 0.")

    def __call__(self, volume: Volume) -> torch.Tensor:
        """Return the series as (T, C, D, H, W) float32. Raises DataError for another modality."""
        return self.tiles(volume).tensor

    def tiles(self, volume: Volume) -> Tiles:
        """Return the series as tiles with their places and foreground. Raises DataError for another modality."""
        return join_tiles(list(self.batches(volume, batch_size=1 << 30)))

    def batches(self, volume: Volume, *, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Tiles]:
        """Yield the series as Tiles of at most `batch_size`, so that memory stays bounded; resampled on `device`."""
        self.check_modality(volume.modality)
        volume = volume.oriented(self.orientation)
        number = self.choose_level(volume.shape, volume.spacing.tolist())
        factor, voxels = pyramid.build(volume.voxels, volume.spacing.tolist())[number]
        yield from self.batches_of_level(
            voxels, factor, shape=volume.shape, affine=volume.affine, batch_size=batch_size, device=device
        )

    def batches_of_level(
        self,
        voxels: np.ndarray,
        factor: Triple,
        *,
        shape: Sequence[int],
        affine: np.ndarray,
        batch_size: int,
        device: torch.device | str = "cpu",
    ) -> Iterator[Tiles]:
        """Yield Tiles from one pyramid level, as a store keeps it: (d, h, w) voxels in this orientation.

        shape and affine are the level-0 grid's. Yields what `batches` yields for the whole Volume.
        """
        grid = self.plan(shape, affine)
        foreground = self.foreground_fractions(voxels, factor, grid)
        kept = np.flatnonzero(foreground >= self.input.skip_air)
        if kept.size == 0:
            kept = np.array([int(np.argmax(foreground))])
        for first in range(0, len(kept), batch_size):
            starts = grid.starts[kept[first : first + batch_size]]
            values = torch.stack([self._cut(voxels, factor, grid, start, device) for start in starts])
            yield Tiles(
                tensor=apply_windows(values, self.windows),
                start_voxels=starts,
                start_mm=starts @ grid.affine[:3, :3].T + grid.affine[:3, 3],
                foreground=torch.from_numpy(foreground[kept[first : first + batch_size]]).float(),
                spacing_mm=torch.tensor(grid.spacing_mm).expand(len(starts), 3),
                grid=grid,
            )

    def check_modality(self, modality: str) -> None:
        """Raise DataError when a series of `modality` is not what the encoder was trained on."""
        if modality != self.modality:
            raise DataError(
                f"this encoder takes {self.modality}, and the series is {modality}: features of another modality mean "
                f"nothing. Use an encoder trained on {modality}, or correct the modality that the series was read with."
            )

    def plan(self, shape: Sequence[int], affine: np.ndarray) -> Grid:
        """Return the grid and the tiles' places for a series of (D, H, W) `shape` and level-0 `affine`."""
        native = np.linalg.norm(affine[:3, :3], axis=0)
        extent = native * np.asarray(shape)
        size = np.asarray(self.input.size_voxels)
        spacing = extent / size if self.input.spacing_mm is None else np.asarray(self.input.spacing_mm)
        count = np.maximum(np.ceil(extent / spacing - 1e-6), 1).astype(np.int64)
        if self.input.mode == "whole":
            size = -(-count // size) * size
        axes = [_starts(int(n), int(s), self.input.overlap) for n, s in zip(count, size, strict=True)]
        origin = (np.asarray(shape) - 1) / 2 - (count - 1) / 2 * spacing / native
        placed = np.eye(4)
        placed[:3, :3] = affine[:3, :3] * (spacing / native)
        placed[:3, 3] = affine[:3, :3] @ origin + affine[:3, 3]
        return Grid(
            shape=triple(count.tolist(), "grid"),
            spacing_mm=triple_of_floats(spacing.tolist(), "spacing"),
            native_shape=triple([int(n) for n in shape], "shape"),
            native_mm=triple_of_floats(native.tolist(), "spacing"),
            origin=triple_of_floats(origin.tolist(), "origin"),
            affine=placed,
            tile=triple(size.tolist(), "tile"),
            starts=np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3),
        )

    def choose_level(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> int:
        """Return the number of the pyramid level that a series of this shape and spacing is read at."""
        wanted = self.input.spacing_mm
        if wanted is None:
            wanted = [n * s / size for n, s, size in zip(shape, spacing_mm, self.input.size_voxels, strict=True)]
        return pyramid.choose_level(spacing_mm, pyramid.level_factors(shape, spacing_mm), wanted)

    def foreground_fractions(self, voxels: np.ndarray, factor: Triple, grid: Grid) -> np.ndarray:
        """Return the (T,) share of each tile's level voxels above `foreground_above`; outside the series is none."""
        start, step = _level_coordinates(grid, factor)
        low = np.floor(start + (grid.starts - 0.5) * step + 0.5).astype(np.int64)
        high = np.floor(start + (grid.starts + np.asarray(grid.tile) - 0.5) * step + 0.5).astype(np.int64)
        high = np.maximum(high, low + 1)
        counts = [
            np.count_nonzero(voxels[z0:z1, y0:y1, x0:x1] > self.input.foreground_above)
            for (z0, y0, x0), (z1, y1, x1) in zip(
                np.maximum(low, 0).tolist(), np.maximum(high, 0).tolist(), strict=True
            )
        ]
        return np.asarray(counts) / (high - low).prod(axis=1)

    def _cut(
        self, voxels: np.ndarray, factor: Triple, grid: Grid, start: np.ndarray, device: torch.device | str
    ) -> torch.Tensor:
        """Return one tile's (D, H, W) values, float32: the crop of the level that it needs, resampled."""
        origin, step = _level_coordinates(grid, factor)
        axes, box = [], []
        for axis, length in enumerate(voxels.shape):
            positions = origin[axis] + step[axis] * (start[axis] + np.arange(grid.tile[axis]))
            first = int(np.clip(np.floor(positions[0]), 0, length - 1))
            stop = int(np.clip(np.floor(positions[-1]) + 2, first + 1, length))
            edge = grid.native_shape[axis] / factor[axis] - 0.5
            axes.append(linear_axis(positions - first, stop - first, low=-0.5 - first, high=edge - first))
            box.append(slice(first, stop))
        crop = torch.from_numpy(np.ascontiguousarray(voxels[tuple(box)])).to(device)
        return resample(crop, axes, air=fill_value(self.modality))

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, as preprocess.json holds them."""
        tree = dataclasses.asdict(self)
        return {key: tree[key] for key in ("modality", "orientation", "input", "windows")}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str = "preprocess.json") -> "Preprocessing":
        """Return the Preprocessing of `to_dict`'s tree. Raises ArtefactError for a missing, unknown or unusable key."""
        try:
            spec = dict(tree["input"])
            spec["size_voxels"] = triple(spec["size_voxels"], "size_voxels")
            if spec.get("spacing_mm") is not None:
                spec["spacing_mm"] = triple_of_floats(spec["spacing_mm"], "spacing_mm")
            windows = tuple(Window(**window) for window in tree["windows"])
            rest = {key: value for key, value in tree.items() if key not in ("input", "windows")}
            return cls(windows=windows, input=InputSpec(**spec), **rest)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ArtefactError(f"{where}: not a usable description of preprocessing ({error}).") from None


def fill_value(modality: str) -> float:
    """Return what lies outside a series: air (HU) for CT, 0 otherwise."""
    return float(AIR_HU) if modality == "CT" else 0.0


def join_tiles(parts: Sequence[Tiles]) -> Tiles:
    """Return consecutive batches of one series as one."""
    return Tiles(
        tensor=torch.cat([part.tensor for part in parts]),
        start_voxels=np.concatenate([part.start_voxels for part in parts]),
        start_mm=np.concatenate([part.start_mm for part in parts]),
        foreground=torch.cat([part.foreground for part in parts]),
        spacing_mm=torch.cat([part.spacing_mm for part in parts]),
        grid=parts[0].grid,
    )


def _starts(count: int, size: int, overlap: float) -> np.ndarray:
    """Return the first voxels of the fewest tiles of `size` that cover `count` voxels, evenly spread."""
    if count <= size:
        return np.array([-((size - count) // 2)])
    stride = max(1, math.floor(size * (1 - overlap)))
    tiles = math.ceil((count - size) / stride) + 1
    return np.rint(np.linspace(0, count - size, tiles)).astype(np.int64)


def _level_coordinates(grid: Grid, factor: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Return (start, step): grid index j lies at the level's fractional index start + j · step."""
    start = pyramid.level_index(np.asarray(grid.origin), factor)
    return start, np.asarray(grid.spacing_mm) / (np.asarray(grid.native_mm) * np.asarray(factor))

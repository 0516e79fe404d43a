"""Preprocessing, the one path from a Volume to a tensor. It travels inside every published encoder.

The path is the one that training views take: canonical axes, the pyramid level whose spacing is ≤ the wanted one,
a crop of that level, separable linear resampling of the crop, windows last. A series is never resampled as a whole.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fmct import pyramid
from fmct.errors import ArtefactError, ConfigError, DataError
from fmct.normalise import SIGNS, Normalisation, already_normalised, settings_from
from fmct.series_steps import SeriesSteps, series_input
from fmct.shapes import Triple, TripleF, triple, triple_of_floats
from fmct.tiling import Grid, Scan, about_the_body, coarse_level, cut_tile, foreground_fractions, plan_slabs, plan_tiles
from fmct.volume import AIR_HU, CANONICAL, Volume
from fmct.windows import IDENTITY, Curve, Window, apply_windows

FORMAT = ("fmct-preprocess", "1.1")
MODES = ("whole", "resize", "tiles", "axial", "slabs")
POOLS = ("foreground", "mean")
_MEAN_SIDE, _PERCENTILE_SIDE = 64, 128  # voxels per axis of the levels for a series' mean and percentiles: training's
_CURVE_SIDE = 256  # and of the level that a normalisation is fitted to: most MR as they are


@dataclass(frozen=True)
class InputSpec:
    """How a whole series becomes encoder input.

    mode: `tiles` cuts overlapping tiles of size_voxels at spacing_mm; `axial` cuts them along the body's axis alone,
    each about the middle of the body in the slices that it shows; `whole` takes the series at spacing_mm as one
    input, each side completed with air to a multiple of size_voxels; `resize` resamples the whole field of view to
    size_voxels, whatever spacing that gives; `slabs` cuts consecutive slabs of size_voxels along z, in order, each the
    centre crop in-plane, where a spacing of 0 is the series' own pixel; air and overlap play no part.
    overlap: least fraction of a tile's side shared with its neighbour. skip_air: tiles with a smaller fraction of
    foreground (voxels above foreground_above, HU for CT; null: above
    the series' mean) are left out, the one with most foreground never.
    pool: `foreground` weights tiles by their foreground fraction, `mean` does not.
    steps: what published encoders want done to the series as a whole (`fmct.series_steps`); with mode resize or whole,
    which then trims instead of completing, and without spacing_mm.
    """

    mode: str = "tiles"
    size_voxels: Triple = (96, 96, 96)
    spacing_mm: TripleF | None = (1.0, 1.0, 1.0)
    overlap: float = 0.25
    skip_air: float = 0.05
    pool: str = "foreground"
    foreground_above: float | None = -500.0
    steps: SeriesSteps | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.pool not in POOLS:
            raise ConfigError(
                f"input: mode is one of {MODES} and pool one of {POOLS}; got {self.mode!r}, {self.pool!r}."
            )
        if min(self.size_voxels) < 1:
            raise ConfigError(f"input: size_voxels are three positive integers (z, y, x); got {self.size_voxels}.")
        if self.steps is not None and (self.mode in ("tiles", "axial", "slabs") or self.spacing_mm is not None):
            raise ConfigError("input: steps go with mode resize or whole, and take the place of spacing_mm (null).")
        if self.mode == "resize" and self.spacing_mm is not None:
            raise ConfigError("input: mode resize takes the spacing from the series; leave spacing_mm out (null).")
        slabs = self.mode == "slabs"
        given = self.spacing_mm is not None and all(
            0 < s < math.inf or (slabs and axis and s == 0) for axis, s in enumerate(self.spacing_mm)
        )
        if self.mode != "resize" and self.steps is None and not given:
            raise ConfigError(
                f"input: mode {self.mode} needs spacing_mm, three positive numbers; got {self.spacing_mm}."
            )
        if slabs and (self.overlap or self.skip_air):
            raise ConfigError("input: slabs follow one another whatever is on them: overlap and skip_air are 0.")
        if not (0 <= self.overlap < 1 and 0 <= self.skip_air < 1):
            raise ConfigError(f"input: overlap and skip_air lie in [0, 1); got {self.overlap} and {self.skip_air}.")


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
    """From a Volume to encoder input: modality (checked), orientation, InputSpec, and one channel per window.

    percentiles: instead of windows, one channel scaled to [−1, 1] between two percentiles of each series, as some
    published recipes were trained; it erases HU. normalisation: instead of either, one channel that a kind of
    fmct.normalise makes (MR). lesion_sign: of a model that looks for lesions, whether they are `dark` or `bright`.
    """

    windows: tuple[Window, ...]
    input: InputSpec = dataclasses.field(default_factory=InputSpec)
    modality: str = "CT"
    orientation: str = CANONICAL
    percentiles: tuple[float, float] | None = None
    normalisation: Normalisation = dataclasses.field(default_factory=Normalisation)
    lesion_sign: str = ""

    def __post_init__(self) -> None:
        normalised = self.normalisation.kind != "none"
        if bool(self.windows) + bool(self.percentiles) + normalised != 1:
            raise ConfigError(
                "preprocessing needs windows, such as {low: -1000, high: 1000}, or percentiles, or a normalisation: "
                "one of the three."
            )
        if normalised and self.modality == "CT":
            raise ConfigError("preprocessing: CT has HU and takes windows; a normalisation is of MR (modality: MR).")
        if self.lesion_sign not in ("", *SIGNS):
            raise ConfigError(f"lesion_sign: expected one of {', '.join(SIGNS)}; got {self.lesion_sign!r}.")
        for window in self.windows:
            if not window.low < window.high or not math.isfinite(window.offset_and_scale[1]) or window.scale == 0:
                raise ConfigError(f"window {window.name or window}: expected low < high and a scale other than 0.")

    @property
    def channels(self) -> int:
        """The number of input channels."""
        return len(self.windows) or 1

    @property
    def body_axis(self) -> int:
        """The axis (0, 1 or 2) of this orientation that runs along the body, from feet to head or back."""
        return next(axis for axis, letter in enumerate(self.orientation) if letter in "SI")

    def axial(self, overlap: float = 0.5) -> "Preprocessing":
        """Return the same with tiles along the body alone; of an encoder that takes a series as one input, itself."""
        if self.input.spacing_mm is None:
            return self
        return dataclasses.replace(self, input=dataclasses.replace(self.input, mode="axial", overlap=overlap))

    def __call__(self, volume: Volume) -> torch.Tensor:
        """Return the series as (T, C, D, H, W) float32. Raises DataError for another modality."""
        return self.tiles(volume).tensor

    def tiles(self, volume: Volume) -> Tiles:
        """Return the series as tiles with their places and foreground. Raises DataError for another modality."""
        return join_tiles(list(self.batches(self.scan(volume), batch_size=1 << 30)))

    def scan(self, volume: Volume) -> Scan:
        """Return what is cut of a volume: the level to read. Raises DataError for another modality."""
        self.check_modality(volume.modality)
        volume = volume.oriented(self.orientation)
        whole = [((1, 1, 1), volume.voxels)]
        levels = whole if self.input.steps else pyramid.build(volume.voxels, volume.spacing.tolist())
        return self.scan_of_levels(
            lambda number: levels[number][1],
            [factor for factor, _ in levels],
            shape=volume.shape,
            affine=volume.affine,
            spacing_mm=volume.spacing.tolist(),
            lowest=float(volume.voxels.min()),
            facts=volume.facts,
        )

    def scan_of_levels(
        self,
        read: Callable[[int], np.ndarray],
        factors: Sequence[Triple],
        *,
        shape: Triple,
        affine: np.ndarray,
        spacing_mm: Sequence[float],
        lowest: float,
        scale: float = 1.0,
        facts: Mapping[str, Any] | None = None,
    ) -> Scan:
        """Return what is cut of a pyramid in this encoder's orientation, as a store keeps it, reading few levels.

        read(number): the voxels of a level; times `scale` they are in units. shape, affine, spacing_mm: of level 0.
        lowest: the smallest value of the series in units. facts: of the series; they tell whether it was normalised.
        """
        spec = self.input
        wanted = spec.spacing_mm or [
            n * s / size for n, s, size in zip(shape, spacing_mm, spec.size_voxels, strict=True)
        ]
        wanted = [w or s for w, s in zip(wanted, spacing_mm, strict=True)]
        chosen = 0 if spec.steps else pyramid.choose_level(spacing_mm, factors, wanted)
        shapes = [[-(-n // f) for n, f in zip(shape, factor, strict=True)] for factor in factors]
        above, values = spec.foreground_above, None
        if above is None:
            above = float(read(coarse_level(shapes, _MEAN_SIDE)).mean(dtype=np.float64)) * scale
        if self.percentiles is not None:
            fine = read(0 if spec.steps else coarse_level(shapes, _PERCENTILE_SIDE)).astype(np.float32) * np.float32(
                scale
            )
            low, high = np.percentile(fine, self.percentiles)
            values = (float(low), float(high))
        return Scan(
            voxels=read(chosen),
            factor=factors[chosen],
            shape=shape,
            affine=affine,
            air=float(AIR_HU) if self.modality == "CT" else lowest,
            foreground_above=above,
            values=values,
            scale=scale,
            curve=self.curve_of(read, shapes, scale=scale, facts=facts),
        )

    def curve_of(
        self,
        read: Callable[[int], np.ndarray],
        shapes: Sequence[Sequence[int]],
        *,
        scale: float = 1.0,
        facts: Mapping[str, Any] | None = None,
    ) -> Curve | None:
        """Return what normalises a series, read level by level; None where windows or percentiles make its channels.

        Raises DataError for a series that was normalised in another way, or whose values cannot be normalised.
        """
        if already_normalised(facts or {}, self.normalisation):
            return IDENTITY
        if self.normalisation.kind == "none":
            return None
        return self.normalisation.fitted(self.curve_values(read, shapes, scale=scale))

    def curve_values(
        self, read: Callable[[int], np.ndarray], shapes: Sequence[Sequence[int]], *, scale: float = 1.0
    ) -> np.ndarray:
        """Return the values in units, float32, of the level that a normalisation is fitted to."""
        level = 0 if self.input.steps else coarse_level(shapes, _CURVE_SIDE)
        return read(level).astype(np.float32) * np.float32(scale)

    def batches(self, scan: Scan, *, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Tiles]:
        """Yield a series as Tiles of at most `batch_size`, so that memory stays bounded; resampled on `device`."""
        spec = self.input
        windows = self.windows_of(scan)
        if spec.steps is not None:
            yield self._whole_series(scan, spec.steps, windows, device)
            return
        grid = self.grid(scan)
        foreground = foreground_fractions(scan, grid)
        kept = np.flatnonzero(foreground >= spec.skip_air)
        if kept.size == 0:
            kept = np.array([int(np.argmax(foreground))])
        for first in range(0, len(kept), batch_size):
            chosen = kept[first : first + batch_size]
            starts = grid.starts[chosen]
            values = torch.stack([cut_tile(scan, grid, start, device=device) for start in starts])
            yield Tiles(
                tensor=apply_windows(values, windows),
                start_voxels=starts,
                start_mm=starts @ grid.affine[:3, :3].T + grid.affine[:3, 3],
                foreground=torch.from_numpy(foreground[chosen]).float(),
                spacing_mm=torch.tensor(grid.spacing_mm).expand(len(starts), 3),
                grid=grid,
            )

    def grid(self, scan: Scan) -> Grid:
        """Return where the tiles of a scan lie, those of air too; its steps, if it has any, play no part."""
        spec = self.input
        if spec.mode == "slabs" and spec.spacing_mm is not None:
            return plan_slabs(scan.shape, scan.affine, size=spec.size_voxels, spacing_mm=spec.spacing_mm)
        grid = plan_tiles(
            scan.shape,
            scan.affine,
            size=spec.size_voxels,
            spacing_mm=spec.spacing_mm,
            overlap=spec.overlap,
            whole=spec.mode == "whole",
            along=self.body_axis if spec.mode == "axial" else None,
        )
        return about_the_body(scan, grid, self.body_axis) if spec.mode == "axial" else grid

    def windows_of(self, scan: Scan) -> tuple[Window | Curve, ...]:
        """Return what makes this scan's channels: the fixed windows, its own curve, or that of its own percentiles."""
        if scan.curve is not None:
            return (scan.curve,)
        return self.windows if scan.values is None else (_percentile_window(*scan.values),)

    def _whole_series(
        self, scan: Scan, steps: SeriesSteps, windows: Sequence[Window | Curve], device: torch.device | str
    ) -> Tiles:
        """Return a series as the one tile that its steps make."""
        spec = self.input
        values, grid = series_input(
            scan,
            steps,
            spec.size_voxels,
            windows,
            whole=spec.mode == "whole",
            device=device,
        )
        return Tiles(
            tensor=values[None],
            start_voxels=grid.starts,
            start_mm=grid.affine[None, :3, 3],
            foreground=torch.from_numpy(foreground_fractions(scan, grid)).float(),
            spacing_mm=torch.tensor([grid.spacing_mm]),
            grid=grid,
        )

    def check_modality(self, modality: str, where: str = "") -> None:
        """Raise DataError, `where` (a file or series) first, for a modality that the encoder was not trained on."""
        if modality != self.modality:
            raise DataError(
                f"{where}{': ' if where else ''}this encoder takes {self.modality}, and the series is {modality}: "
                f"features of another modality mean nothing. Use an encoder trained on {modality}, "
                "or correct the modality that the series was read with."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, as preprocess.json holds them."""
        tree = dataclasses.asdict(self)
        if self.input.steps is None:
            del tree["input"]["steps"]  # as in every preprocess.json from before there were any
        kept = ["modality", "orientation", "input", "windows", "percentiles"]
        kept += ["normalisation"] if self.normalisation.kind != "none" else []
        kept += ["lesion_sign"] if self.lesion_sign else []
        return {key: tree[key] for key in kept}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str = "preprocess.json") -> "Preprocessing":
        """Return the Preprocessing of `to_dict`'s tree. Raises ArtefactError for a missing, unknown or unusable key."""
        try:
            spec = dict(tree["input"])
            spec["size_voxels"] = triple(spec["size_voxels"], "size_voxels")
            if spec.get("spacing_mm") is not None:
                spec["spacing_mm"] = triple_of_floats(spec["spacing_mm"], "spacing_mm")
            if spec.get("steps") is not None:
                spec["steps"] = SeriesSteps.from_tree(spec["steps"])
            windows = tuple(Window(**window) for window in tree["windows"])
            rest = {key: value for key, value in tree.items() if key not in _OWN_FORM}
            low_high = tree.get("percentiles")
            percentiles = (float(low_high[0]), float(low_high[1])) if low_high else None
            settings = settings_from(tree.get("normalisation"))
            return cls(
                windows=windows, input=InputSpec(**spec), percentiles=percentiles, normalisation=settings, **rest
            )
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ArtefactError(f"{where}: not a usable description of preprocessing ({error}).") from None


_OWN_FORM = ("input", "windows", "percentiles", "normalisation")


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


def _percentile_window(low: float, high: float) -> Window:
    """Return the window that maps a series' percentiles `low` and `high` to −1 and 1."""
    high = max(high, low + 1e-3)
    return Window(low, high, shift=(low + high) / 2, scale=(high - low) / 2)

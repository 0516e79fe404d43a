"""Steps that take a series as a whole to encoder input, for encoders whose authors prepared theirs so.

fmct's own encoders are fed with tiles cut from a pyramid level. Published ones were trained on other chains: a cubic
resample of the whole series, a crop to its foreground, a resize to one cube. Features mean something only when these
are done in the same order and by the same rules, so each is a step here, on the scan's own grid, voxel for voxel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fmct.axes import linear_axis, spline_axis
from fmct.errors import ConfigError, DataError
from fmct.resample import resample
from fmct.shapes import Triple, TripleF, triple, triple_of_floats
from fmct.tiling import Grid, Scan
from fmct.windows import Curve, Window, apply_windows

RESIZES = ("linear", "area")
CROPS = ("", "above", "percentile")


@dataclass(frozen=True)
class SeriesSteps:
    """What is done to a whole series, in this order.

    0. clip: values are limited to these two, in units.
    1. spline_mm: resample to this spacing (z, y, x) by cubic B-splines, the first voxel staying where it is (MONAI's
       Spacing with mode 3). isotropic_mm: or resample linearly to cubes as fine as the series' finest axis, but not
       finer than this; a series of cubes stays as it is.
    2. crop: `above` cuts to the box of the voxels greater than crop_above (HU for CT), `percentile` to that of the
       voxels greater than the lower percentile; "" keeps all.
    3. Mode resize of the input: to size_voxels, by the mean over each voxel's place (`area`, adaptive average pooling)
       or at its centre (`linear`); windows_first: the windows before that. Mode whole: the outermost voxels are left
       out until every side is a multiple of size_voxels.
    4. half: values are rounded to half precision, as a cache of them was.
    """

    clip: tuple[float, float] | None = None
    spline_mm: TripleF | None = None
    isotropic_mm: float | None = None
    crop: str = ""
    crop_above: float = 0.0
    resize: str = "linear"
    windows_first: bool = False
    half: bool = False

    def __post_init__(self) -> None:
        if self.resize not in RESIZES or self.crop not in CROPS:
            raise ConfigError(
                f"steps: resize is one of {', '.join(RESIZES)} and crop of {', '.join(filter(None, CROPS))} or empty; "
                f"got {self.resize!r} and {self.crop!r}."
            )
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ConfigError(f"steps: clip is (low, high) with low < high; got {self.clip}.")
        if self.spline_mm is not None and self.isotropic_mm is not None:
            raise ConfigError("steps: a series is resampled to spline_mm or to isotropic_mm, not to both.")
        given = [*(self.spline_mm or ()), *([] if self.isotropic_mm is None else [self.isotropic_mm])]
        if not all(0 < spacing < math.inf for spacing in given):
            raise ConfigError(f"steps: spacings are positive millimetres; got {given}.")

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "SeriesSteps":
        """Return the steps of a plain tree. Raises TypeError, ValueError or ConfigError when they are none."""
        values: dict[str, Any] = dict(tree)
        if values.get("spline_mm") is not None:
            values["spline_mm"] = triple_of_floats(values["spline_mm"], "spline_mm")
        if values.get("clip") is not None:
            low, high = values["clip"]
            values["clip"] = (float(low), float(high))
        return cls(**values)


@dataclass(frozen=True)
class _Placed:
    """Values (D, H, W) whose voxel j lies at the level-0 index start + step · j."""

    values: torch.Tensor
    start: np.ndarray
    step: np.ndarray


def series_input(
    scan: Scan,
    steps: SeriesSteps,
    size: Triple,
    windows: Sequence[Window | Curve],
    *,
    whole: bool,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, Grid]:
    """Return a series as one input, (C, D, H, W) float32, and the grid that it lies on.

    whole: keep the voxels and trim to multiples of `size`; else resize to `size`. The scan is one of level 0. Raises
    DataError when nothing is left of it.
    """
    native = np.linalg.norm(scan.affine[:3, :3], axis=0)
    placed = _cropped(_resampled(scan, steps, native, device), steps, scan)
    channels = apply_windows(placed.values[None], windows)[0] if steps.windows_first else placed.values[None]
    if whole:
        channels, start, step = _trimmed(channels, placed, size)
    else:
        channels, start, step = _resized(channels, placed, size, steps.resize)
    if not steps.windows_first:
        channels = apply_windows(channels, windows)[0]
    channels = channels.half().float() if steps.half else channels
    return channels, _grid(scan, native, triple(channels.shape[1:], "size"), start, step)


def _resampled(scan: Scan, steps: SeriesSteps, native: np.ndarray, device: torch.device | str) -> _Placed:
    """Return steps 0 and 1, in units."""
    values = torch.from_numpy(np.ascontiguousarray(scan.voxels)).to(device)
    if steps.clip is not None:
        values = values.float().clamp(*(limit / scan.scale for limit in steps.clip))
    shape = np.asarray(values.shape)
    start, step = np.zeros(3), np.ones(3)
    if steps.spline_mm is not None:
        step = np.asarray(steps.spline_mm) / native
        count = np.maximum(np.rint((shape - 1) / step + 1), 1).astype(int)
        axes = [spline_axis(np.arange(n) * s, length) for n, s, length in zip(count, step, shape, strict=True)]
        if not np.allclose(step, 1, atol=1e-6):
            values = resample(values, axes, air=0.0)
    elif steps.isotropic_mm is not None and not np.allclose(native, native[0], rtol=1e-5):
        side = max(float(native.min()), steps.isotropic_mm)
        count = [round(extent) for extent in (shape * native / side).tolist()]
        step = shape / np.asarray(count)
        start = step / 2 - 0.5
        axes = [
            linear_axis(first + s * np.arange(n), length)
            for first, s, n, length in zip(start, step, count, shape, strict=True)
        ]
        values = resample(values, axes, air=0.0)
    return _Placed(values.float() * scan.scale, start, step)


def _cropped(placed: _Placed, steps: SeriesSteps, scan: Scan) -> _Placed:
    """Return step 2: the box that holds every voxel above the threshold."""
    if not steps.crop:
        return placed
    if steps.crop == "percentile" and scan.values is None:
        raise ConfigError("steps: crop=percentile needs the percentiles of the preprocessing.")
    above = steps.crop_above if steps.crop == "above" or scan.values is None else scan.values[0]
    body = placed.values > above
    if not bool(body.any()):
        raise DataError(
            f"no voxel of this series lies above {above:g}, where its foreground is looked for: it is empty, or its "
            "values are not in the units that the encoder takes (HU for CT)."
        )
    box, first = [], []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        found = torch.nonzero(body.amax(dim=others))[:, 0]
        first.append(int(found[0]))
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return _Placed(placed.values[tuple(box)], placed.start + placed.step * np.asarray(first), placed.step)


def _resized(
    channels: torch.Tensor, placed: _Placed, size: Triple, how: str
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Return (C, *size) values, and the level-0 index and step of the new voxels."""
    shape = np.asarray(channels.shape[1:])
    if how == "area":
        resized = functional.adaptive_avg_pool3d(channels[None], size)[0]
    else:
        resized = functional.interpolate(channels[None], size=size, mode="trilinear", align_corners=False)[0]
    ratio = shape / np.asarray(size)
    return resized, placed.start + placed.step * (ratio / 2 - 0.5), placed.step * ratio


def _trimmed(channels: torch.Tensor, placed: _Placed, size: Triple) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Return the middle of the values, every side a multiple of `size`, and where it lies."""
    shape = np.asarray(channels.shape[1:])
    rest = shape % np.asarray(size)
    if (shape < np.asarray(size)).any():
        raise DataError(
            f"this series has {' × '.join(map(str, shape.tolist()))} voxels after resampling, fewer than one patch of "
            f"{' × '.join(map(str, size))} on an axis: too thin for this encoder."
        )
    low = rest // 2
    z, y, x = (slice(int(a), int(a + n - r)) for a, n, r in zip(low, shape, rest, strict=True))
    return channels[:, z, y, x], placed.start + placed.step * low, placed.step


def _grid(scan: Scan, native: np.ndarray, size: Triple, start: np.ndarray, step: np.ndarray) -> Grid:
    """Return the grid of one input whose voxel j lies at the level-0 index start + step · j."""
    affine = np.eye(4)
    affine[:3, :3] = scan.affine[:3, :3] * step
    affine[:3, 3] = scan.affine[:3, :3] @ start + scan.affine[:3, 3]
    return Grid(
        shape=size,
        spacing_mm=triple_of_floats((native * step).tolist(), "spacing"),
        native_mm=triple_of_floats(native.tolist(), "spacing"),
        origin=triple_of_floats(start.tolist(), "origin"),
        affine=affine,
        tile=size,
        starts=np.zeros((1, 3), dtype=np.int64),
    )

"""Intensity windows and curves: from HU, or another unit, to the channels that an encoder reads.

torch is imported where it is used: readers of scans, and with them every ingest worker, come here for a name or a
number, and torch would be the larger part of their memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fmct.errors import ConfigError

if TYPE_CHECKING:
    import torch


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


@dataclass(frozen=True)
class Curve:
    """A piecewise-linear map: knots (rising values of the series) go to heights.

    Beyond the outer knots the outer pieces go on, or, with clip, the outer heights hold.
    """

    knots: tuple[float, ...]
    heights: tuple[float, ...]
    clip: bool = False

    def __post_init__(self) -> None:
        if len(self.knots) != len(self.heights) or len(self.knots) < 2:
            raise ConfigError(f"curve: expected as many heights as knots, two or more; got {self}.")
        if not all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False)):
            raise ConfigError(f"curve: knots rise strictly; got {list(self.knots)}.")

    def __call__(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return float32 heights at `values`, of any shape."""
        import torch

        values = values.float()
        knots, heights = self.knots, self.heights
        slope = [(heights[k + 1] - heights[k]) / (knots[k + 1] - knots[k]) for k in range(len(knots) - 1)]
        out = torch.full_like(values, heights[0])
        for piece, steep in enumerate(slope):
            low = -math.inf if piece == 0 and not self.clip else knots[piece]
            high = math.inf if piece == len(slope) - 1 and not self.clip else knots[piece + 1]
            out.add_(values.clamp(low, high).sub_(knots[piece]), alpha=steep)
        return out

    def of_array(self, values: np.ndarray) -> np.ndarray:
        """Return the float32 heights of an array."""
        import torch

        return self(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))).numpy()

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists."""
        return {"knots": list(self.knots), "heights": list(self.heights), "clip": self.clip}


IDENTITY = Curve((0.0, 1.0), (0.0, 1.0))


def apply_windows(values: "torch.Tensor", windows: Sequence[Window | Curve]) -> "torch.Tensor":
    """Return (B, C, D, H, W) float32 channels, one per window or curve, of (B, D, H, W) values (HU for CT)."""
    import torch

    values = values.float()
    channels = torch.empty((values.shape[0], len(windows), *values.shape[1:]), device=values.device)
    for number, window in enumerate(windows):
        if isinstance(window, Curve):
            channels[:, number] = window(values)
            continue
        shift, scale = window.offset_and_scale
        channels[:, number] = (values.clamp(window.low, window.high) - shift) / scale
    return channels

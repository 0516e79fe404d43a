"""Intensity windows: from HU, or another unit, to the channels that an encoder reads."""

from collections.abc import Sequence
from dataclasses import dataclass

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


def apply_windows(values: torch.Tensor, windows: Sequence[Window]) -> torch.Tensor:
    """Return (B, C, D, H, W) float32 channels, one per window, of (B, D, H, W) values (HU for CT)."""
    values = values.float()
    channels = torch.empty((values.shape[0], len(windows), *values.shape[1:]), device=values.device)
    for number, window in enumerate(windows):
        shift, scale = window.offset_and_scale
        channels[:, number] = (values.clamp(window.low, window.high) - shift) / scale
    return channels

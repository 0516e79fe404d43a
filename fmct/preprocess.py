"""Preprocessing, the one path from a Volume to a tensor. It travels inside every published encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fmct.errors import ArtefactError
from fmct.volume import CANONICAL


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

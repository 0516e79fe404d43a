"""Batches of labelled two-dimensional slices: every slice once an epoch, rotated and shifted a little.

Which slice a draw shows, and how it is varied, depend on (seed, draw) alone: rank, batch and a resume change nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError, DataError
from fmct.randomness import generator, permutation


@dataclass(frozen=True)
class SliceBatch:
    """slices: (B, H, W) float32. labels: (B,) float32, 0 or 1. draws: (B,) int64. entries: the scan of each."""

    slices: Tensor
    labels: Tensor
    draws: Tensor
    entries: list[str]


@dataclass(frozen=True)
class SliceVariation:
    """How a slice varies in training: a rotation of up to ± degrees, a shift of up to ± a share of each side.

    Uniform, bilinear, and what comes in from outside repeats the nearest pixel. No flip, zoom or change of values.
    """

    rotation_degrees: float = 5.0
    shift: float = 0.1

    def __post_init__(self) -> None:
        if self.rotation_degrees < 0 or not 0 <= self.shift < 1:
            raise ConfigError(
                f"variation: rotation_degrees ≥ 0 and shift in [0, 1); got {self.rotation_degrees} and {self.shift}."
            )

    def drawn(self, seed: int, draw: int) -> tuple[float, float, float]:
        """Return (degrees, rows, columns) of a draw; rows and columns as shares of the sides."""
        random = generator(seed, "slice-variation", draw)
        degrees = float(random.uniform(-self.rotation_degrees, self.rotation_degrees))
        rows, columns = (float(random.uniform(-self.shift, self.shift)) for _ in range(2))
        return degrees, rows, columns


@dataclass(frozen=True)
class SliceScans:
    """The scans of a split. arrays: each (S, H, W) float32. inside: each (S,) bool. labels: 0 or 1.

    ids: patient/series. Only slices inside their scan are drawn or counted.
    """

    arrays: Sequence[np.ndarray]
    inside: Sequence[np.ndarray]
    labels: np.ndarray
    ids: Sequence[str]

    @property
    def places(self) -> np.ndarray:
        """(M, 2) int64: the scan and the slice number of every slice that lies inside its scan."""
        parts = [np.stack([np.full(int(kept.sum()), n), np.flatnonzero(kept)], 1) for n, kept in enumerate(self.inside)]
        return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)

    @property
    def patients(self) -> list[str]:
        """The patient of each scan."""
        return [name.split("/")[0] for name in self.ids]

    def taken(self, places: np.ndarray) -> Tensor:
        """Return (B, H, W) float32 slices at (B, 2) places."""
        return torch.from_numpy(np.stack([self.arrays[scan][number] for scan, number in places.tolist()]))

    def check_classes(self, split: str) -> None:
        """Raise DataError when the scans are of one class alone: nothing can be learned or chosen from those."""
        positive = int((self.labels == 1).sum())
        if positive in (0, len(self.labels)):
            raise DataError(
                f"split {split}: {positive} scans with and {len(self.labels) - positive} without contrast; both are "
                "needed. Label more scans, or split the patients otherwise (fmct split, data.splits)."
            )


def slice_batches(
    scans: SliceScans,
    *,
    seed: int,
    batch_size: int,
    variation: SliceVariation | None = None,
    rank: int = 0,
    world_size: int = 1,
    start_draw: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[SliceBatch]:
    """Yield endless batches of `batch_size` draws of this rank, from a global draw number on.

    An epoch is every slice once, in an order of its own.
    """
    places = scans.places
    orders: dict[int, np.ndarray] = {}
    first = start_draw + rank * batch_size
    while True:
        draws = range(first, first + batch_size)
        rows = np.array([_row(draw, len(places), seed, orders) for draw in draws])
        slices = scans.taken(places[rows]).to(device)
        if variation is not None:
            slices = varied(slices, [variation.drawn(seed, draw) for draw in draws])
        chosen = places[rows, 0].tolist()
        yield SliceBatch(
            slices=slices,
            labels=torch.tensor(scans.labels[chosen], dtype=torch.float32, device=device),
            draws=torch.tensor(list(draws)),
            entries=[str(scans.ids[number]) for number in chosen],
        )
        first += world_size * batch_size


def varied(slices: Tensor, changes: Sequence[tuple[float, float, float]]) -> Tensor:
    """Return (B, H, W) slices, each turned by degrees about its middle and shifted by (rows, columns) shares.

    Output pixel p shows the input at middle + R (p − middle + shift), bilinear, the nearest pixel outside.
    """
    height, width = slices.shape[1:]
    scale = [max(height - 1, 1) / 2, max(width - 1, 1) / 2]
    rows = []
    for degrees, down, right in changes:
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = np.array([[cosine, -sine], [sine, cosine]])  # of (row, column)
        offset = turn @ np.array([down * height, right * width])
        # grid_sample wants (x, y) in units of half the side.
        unit = turn * np.array(scale)[None, :] / np.array(scale)[:, None]
        rows.append([[unit[1, 1], unit[1, 0], offset[1] / scale[1]], [unit[0, 1], unit[0, 0], offset[0] / scale[0]]])
    theta = torch.tensor(rows, dtype=torch.float32, device=slices.device)
    grid = functional.affine_grid(theta, [len(slices), 1, height, width], align_corners=True)
    return functional.grid_sample(slices[:, None], grid, padding_mode="border", align_corners=True)[:, 0]


def _row(draw: int, length: int, seed: int, orders: dict[int, np.ndarray]) -> int:
    """Return the slice of a draw; `orders` keeps the epochs in use."""
    epoch, position = divmod(draw, length)
    if epoch not in orders:
        orders.pop(epoch - 2, None)
        orders[epoch] = permutation(length, seed, "slices", epoch)
    return int(orders[epoch][position])

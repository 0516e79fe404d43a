"""Batches for one binary head a finding: as many series with it as without, drawn with replacement.

Each finding has draws of its own. A draw is a function of (seed, finding, draw number) alone, whatever the rank or
batch it falls in.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fmct.errors import ConfigError, DataError
from fmct.randomness import generator
from fmct.shapes import triple_of_floats


@dataclass(frozen=True)
class FindingBatch:
    """inputs: for each of T findings what its head reads, by name, each (B, …). labels: (T, B) int64. draws: (B,)."""

    inputs: list[dict[str, Tensor]]
    labels: Tensor
    draws: Tensor
    entries: list[str]


class Rows(Protocol):
    """An array (S, …), in memory or on disk, of which some rows are taken."""

    def taken(self, rows: Tensor) -> Tensor:
        """Return (M, …) rows of these numbers."""
        ...


@dataclass(frozen=True)
class KeptRows:
    """Rows in memory."""

    array: Tensor

    def taken(self, rows: Tensor) -> Tensor:
        """Return (M, …) rows of these numbers."""
        return self.array[rows]


@dataclass(frozen=True)
class Jitter:
    """How a volume varies on its own grid: flips along its axes, and one shift of all values (of windows, 0 to 1).

    The left-right axis is not flipped by default: some findings have a side.
    """

    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_probability: float = 0.0
    shift: float = 0.0

    @classmethod
    def of(cls, flip: Sequence[float], shift: Sequence[float]) -> "Jitter":
        """Return the jitter of a configuration: flips (z, y, x), and a shift's (probability, size). Or ConfigError."""
        if len(shift) != 2:
            raise ConfigError(f"shift: expected its probability and its size, such as [0.5, 0.1]; got {list(shift)}.")
        return cls(triple_of_floats(flip, "flip"), *shift)

    def apply(self, volume: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a (C, D, H, W) volume flipped and shifted."""
        turned = [axis + 1 for axis, probability in enumerate(self.flip) if rng.random() < probability]
        volume = volume.flip(turned) if turned else volume
        if rng.random() < self.shift_probability:
            volume = volume + float(rng.uniform(-self.shift, self.shift))
        return volume


@dataclass(frozen=True)
class FindingData:
    """The series of a split. arrays: what heads read, by name, each (S, …). labels: (S, T), NaN unknown. ids: (S,).

    chosen: (S, T) bool, series that a finding may draw; None for all. Labels that are unknown are never drawn.
    """

    arrays: Mapping[str, Rows]
    labels: np.ndarray
    ids: list[str]
    targets: Sequence[str]
    chosen: np.ndarray | None = None

    def pools(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each finding the numbers of its (negative, positive) series. Raises DataError when none."""
        pools = []
        for number, target in enumerate(self.targets):
            allowed = np.ones(len(self.labels), bool) if self.chosen is None else self.chosen[:, number]
            negative, positive = (np.flatnonzero(allowed & (self.labels[:, number] == value)) for value in (0, 1))
            if not len(negative) or not len(positive):
                raise DataError(
                    f"{target}: {len(positive)} series with it and {len(negative)} without to train on; a head needs "
                    "both. Leave it out of data.targets, or give more labels."
                )
            pools.append((negative, positive))
        return pools


def finding_batches(
    data: FindingData,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_draw: int = 0,
    jitter: Jitter | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[FindingBatch]:
    """Yield endless batches of `batch_size` draws of this rank, from a global draw number on."""
    pools = data.pools()
    first = start_draw + rank * batch_size
    while True:
        draws = range(first, first + batch_size)
        rows = [_rows(pools[t], seed, target, draws) for t, target in enumerate(data.targets)]
        yield FindingBatch(
            inputs=[
                _inputs(data, rows[t], seed, target, draws, jitter, device) for t, target in enumerate(data.targets)
            ],
            labels=torch.tensor(np.stack([data.labels[chosen, t] for t, chosen in enumerate(rows)])).long().to(device),
            draws=torch.tensor(list(draws)),
            entries=[data.ids[number] for chosen in rows for number in chosen.tolist()],
        )
        first += world_size * batch_size


def _rows(pools: tuple[np.ndarray, np.ndarray], seed: int, target: str, draws: range) -> np.ndarray:
    """Return the series that a finding draws: a class by a fair coin, then any of its series."""
    chosen = []
    for draw in draws:
        rng = generator(seed, "finding", target, draw)
        pool = pools[int(rng.random() < 0.5)]
        chosen.append(pool[int(rng.integers(len(pool)))])
    return np.asarray(chosen)


def _inputs(
    data: FindingData,
    rows: np.ndarray,
    seed: int,
    target: str,
    draws: range,
    jitter: Jitter | None,
    device: torch.device | str,
) -> dict[str, Tensor]:
    taken = {name: array.taken(torch.from_numpy(rows)).float() for name, array in data.arrays.items()}
    if jitter is not None and "volume" in taken:
        varied = [
            jitter.apply(volume, generator(seed, "jitter", target, draw))
            for volume, draw in zip(taken["volume"], draws, strict=True)
        ]
        taken["volume"] = torch.stack(varied)
    return {name: array.to(device) for name, array in taken.items()}

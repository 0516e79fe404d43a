"""Kinds of models that read a whole series in a way of their own, beside windows that slide or tile.

Such a kind names a module here with one function (see `SeriesReader`); `fmct predict` asks it in place of the windows,
and writes the tables that come with a reading beside predictions.csv. Only names registered here are imported.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch

from fmct.publish.load_model import PublishedModel
from fmct.tiling import Grid, Scan

READERS: dict[str, str] = {
    "attention_pe": "fmct.inference.slab_series",
    "contrast": "fmct.contrast.tile_reader",
    "contrast_paper": "fmct.contrast.paper_reader",
}


@dataclass(frozen=True)
class AttentionMap:
    """Where a model looked. attention: (d, h, w) float32, non-negative, on `grid`."""

    attention: torch.Tensor
    grid: Grid


@dataclass(frozen=True)
class Reading:
    """What a model says of one series.

    logits: (T,) float64, of the series' probabilities. tables: rows by the name of their table (`slices` becomes
    slices.csv); patient and series are put before them. notes: what a reader of the result must know. windows,
    looked_at: how many parts of the series there were and how many the network saw. attention: makes the map of where
    the model looked, None for a kind without one.
    """

    logits: torch.Tensor
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    windows: int = 0
    looked_at: int = 0
    attention: Callable[[], AttentionMap] | None = None


class SeriesReader(Protocol):
    """What a reader's module offers."""

    def read_series(self, model: PublishedModel, scan: Scan, *, precision: str) -> Reading:
        """Return what `model` says of a scan (of model.preprocessing.scan). Raises DataError or Refusal."""
        ...


def reader_of(kind: str) -> SeriesReader | None:
    """Return the reader of a kind of model, None for one that is shown windows."""
    name = READERS.get(kind)
    return cast(SeriesReader, importlib.import_module(name)) if name else None

"""Whole series of a store as encoder input, tile by tile in order: for features, bags of tiles and validation."""

from collections.abc import Iterator

import numpy as np
import torch

from fmct.data.cohort import Cohort
from fmct.data.sample import Sample
from fmct.preprocess import Preprocessing, Tiles
from fmct.store.manifest import Entry
from fmct.store.reader import Store
from fmct.tiling import Scan
from fmct.volume import CANONICAL


def series_batches(
    cohort: Cohort,
    split: str,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Sample, Tiles]]:
    """Yield (series, at most `batch_size` of its tiles) for every series of a split and every tile of it, in order.

    A series of many tiles comes in several batches; no batch holds two series. Raises DataError for another modality.
    """
    for sample in cohort.of(split):
        scan = scan_of_entry(preprocessing, cohort.store, sample.entry)
        for tiles in preprocessing.batches(scan, batch_size=batch_size, device=device):
            yield sample, tiles


def scan_of_entry(preprocessing: Preprocessing, store: Store, entry: Entry) -> Scan:
    """Return what is cut of a store's entry, as `preprocessing.scan` returns it for the entry's Volume.

    Raises DataError for another modality.
    """
    preprocessing.check_modality(entry.modality, f"series {entry.id}")
    if preprocessing.orientation != CANONICAL:
        return preprocessing.scan(store.volume(entry))
    return preprocessing.scan_of_levels(
        lambda level: store.read_level(entry, level),
        entry.factors,
        shape=entry.shape,
        affine=np.array(entry.affine),
        spacing_mm=entry.spacing_mm,
        lowest=entry.value_range[0],
        scale=entry.scale,
        facts=entry.facts,
    )

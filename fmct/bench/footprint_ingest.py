"""Memory of an ingest worker: measured in a process of its own, which imports what such a worker imports."""

from functools import partial
from typing import Any

from fmct.io import Candidate, ReadPolicy, discover
from fmct.residence import peak_resident, resident
from fmct.store.ingest import IngestConfig
from fmct.store.take import Job, Taken, read_found, take


def ingest_footprint(*, file: str, folder: str) -> dict[str, Any]:
    """Return the peak resident bytes of a worker that takes one series, and those it held before."""
    before = resident()
    candidate = next(item for item in discover([file]) if isinstance(item, Candidate))
    config = IngestConfig()
    z, y, x = config.chunk
    read = partial(read_found, candidate, ReadPolicy())
    taken = take(Job("series", "patient", folder, read, recipe="bench", chunk=(z, y, x), codec=config.codec))
    assert isinstance(taken, Taken), f"the series of a bench is refused: {taken}"
    d, h, w = taken.entry.shape
    return {"peak": peak_resident(), "before": before, "int16": 2 * d * h * w, "shape": [d, h, w]}

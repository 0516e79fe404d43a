"""What the demo leaves for its page."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmct.probes.comparison import ProbeReport
from fmct.publish import PublishedEncoder
from fmct.store.ingest import IngestSummary
from fmct.store.reader import Store


@dataclass(frozen=True)
class Results:
    """What the page shows."""

    ingested: IngestSummary
    sheet: Path
    run: Path
    encoder: PublishedEncoder
    store: Store
    probe: ProbeReport
    seconds: dict[str, float]
    quick: bool


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]

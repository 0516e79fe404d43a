"""Is this store sane: what it holds, what it refused, and whether a sample of it is what was ingested."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmct.errors import FmctError
from fmct.inspection.findings import Findings
from fmct.store import Entry, Store

SAMPLE = 8
LEDGER = "ledger.jsonl"


def inspect_store(path: Path, *, sample: int = SAMPLE) -> Findings:
    """Return the findings on a store. `sample` series, evenly spread, are read whole and checked; all when negative."""
    findings = Findings("store")
    try:
        store = Store.open(path)
        entries = store.entries
        findings.facts = _counts(store)
    except FmctError as error:
        findings.faults.append(str(error))
        return findings
    findings.facts["refused"] = _refused(path)
    try:
        splits = store.splits()
        findings.facts["splits"] = dict(Counter(splits.values())) or None
        if splits and len(splits) < len(entries):
            findings.notes.append(f"{len(entries) - len(splits)} series are in no split: run fmct split {path}")
    except FmctError as error:
        findings.faults.append(str(error))
    if not entries:
        findings.faults.append("the store holds no series.")
    twice = [name for name, count in Counter(entry.id for entry in entries).items() if count > 1]
    if twice:
        findings.faults.append(f"{len(twice)} ids stand in the manifest more than once, such as {twice[0]}.")
    findings.facts["checked"] = _check(store, entries, sample, findings)
    store.close()
    return findings


def _counts(store: Store) -> dict[str, Any]:
    entries = store.entries
    copies = len(entries) - len({entry.voxel_hash for entry in entries})
    return {
        "series": len(entries),
        "patients": len({entry.patient for entry in entries}),
        "modality": dict(Counter(entry.modality for entry in entries)),
        "voxel_copies": copies,
        "bytes": sum(entry.bytes for entry in entries),
        "shards": len({entry.shard for entry in entries}),
        "slice_distance_mm": _quantiles([entry.spacing_mm[0] for entry in entries]),
        "pixel_mm": _quantiles([entry.spacing_mm[2] for entry in entries]),
        "slices": _quantiles([entry.shape[0] for entry in entries]),
        "columns": _quantiles([entry.shape[2] for entry in entries]),
        "lowest_value": min((entry.value_range[0] for entry in entries), default=None),
        "highest_value": max((entry.value_range[1] for entry in entries), default=None),
        "fingerprint": store.fingerprint(),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return least, median and largest."""
    if not values:
        return None
    return dict(zip(("min", "median", "max"), (float(v) for v in np.quantile(values, (0, 0.5, 1))), strict=True))


def _refused(path: Path) -> dict[str, int]:
    ledger = path / LEDGER
    if not ledger.is_file():
        return {}
    codes: Counter[str] = Counter()
    for line in ledger.read_text(encoding="utf-8").splitlines():
        try:
            codes[str(json.loads(line).get("code"))] += 1
        except (json.JSONDecodeError, AttributeError):
            continue
    codes.pop("None", None)
    return dict(codes.most_common())


def _check(store: Store, entries: Sequence[Entry], sample: int, findings: Findings) -> str:
    count = len(entries) if sample < 0 else min(sample, len(entries))
    chosen = [entries[int(i)] for i in np.unique(np.linspace(0, len(entries) - 1, count).round())] if count else []
    sound = 0
    for entry in chosen:
        try:
            store.verify(entry)
            sound += 1
        except (FmctError, OSError, KeyError, ValueError, RuntimeError) as error:  # the last three: HDF5 on damage
            findings.faults.append(f"entry {entry.id} in {entry.shard}: {error}")
    return f"{sound} of {len(chosen)} series read whole are what was ingested"

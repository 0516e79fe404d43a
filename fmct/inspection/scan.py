"""Is this scan sane: grid, orientation, intensities, or why it is not taken."""

from pathlib import Path
from typing import Any

import numpy as np

from fmct import pyramid
from fmct.errors import DataError, FmctError, Refusal
from fmct.inspection.findings import Findings
from fmct.io import Candidate, ReadPolicy, Rejected, discover, read_candidate
from fmct.volume import Volume, orientation_of

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BANDS = (("air", -32768, -500), ("lung and fat", -500, -30), ("soft tissue", -30, 150), ("bone and metal", 150, 32767))
_NO_SCAN = ("not-an-image", "archive")
MOST = 64  # scans of a folder that are read


def inspect_scan(path: Path, *, modality: str = "CT") -> Findings:
    """Return the findings on a file, or on every scan of a folder. Names, paths and UIDs do not appear in them."""
    policy = ReadPolicy(modalities=(modality,))
    scans, faults, others, unread = [], [], 0, 0
    for item in discover([path], policy=policy):
        if isinstance(item, Rejected) and item.code in _NO_SCAN:
            others += 1
            continue
        if len(scans) == MOST:
            unread += 1
            continue
        facts = _rejected(item) if isinstance(item, Rejected) else _described(item, policy, modality)
        scans.append(facts)
        if "refused" in facts:
            faults.append(f"scan {len(scans) - 1} is refused: {facts['refused']}: {facts['reason']}")
    notes = [f"{others} files are no scans"] if others else []
    if unread:
        notes.append(f"{unread} more scans were found and not read; `fmct ingest` reads all and keeps a ledger")
    if not scans:
        raise DataError(f"{path}: no scan, store, run or encoder. Expected one of them, or a folder that holds scans.")
    kind = "scan" if len(scans) == 1 else f"folder of {len(scans)} scans"
    return Findings(kind, scans[0] if len(scans) == 1 else {"scan": scans}, faults, notes)


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Return the facts of a volume: grid, pyramid, quantiles of its values and, for CT, shares of tissue by HU."""
    spacing = [float(s) for s in volume.spacing]
    voxels = volume.voxels
    sample = voxels[:: max(1, voxels.shape[0] // 64)]  # at most about 128 slices: quantiles to a fraction of a percent
    original = np.asarray(volume.facts.get("original_affine", volume.affine), dtype=np.float64)
    facts: dict[str, Any] = {
        "modality": volume.modality,
        "units": volume.units,
        "voxels_zyx": list(volume.shape),
        "spacing_mm": [round(s, 4) for s in spacing],
        "extent_mm": [round(s * n, 1) for s, n in zip(spacing, volume.shape, strict=True)],
        "orientation": volume.orientation,
        "orientation_in_file": orientation_of(original),
        "pyramid_levels": len(pyramid.level_factors(volume.shape, spacing)),
        "value_range": [float(voxels.min()), float(voxels.max())],
        "quantiles": {f"{q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(sample, QUANTILES), strict=True)},
    }
    if volume.modality == "CT":
        facts["shares"] = {
            name: round(float(((sample >= low) & (sample < high)).mean()), 4) for name, low, high in BANDS
        }
    facts["tags"] = {key: value for key, value in volume.facts.items() if isinstance(value, (str, int, float, bool))}
    return facts


def _described(candidate: Candidate, policy: ReadPolicy, modality: str) -> dict[str, Any]:
    header = {"id": candidate.key, "format": candidate.format, "files": len(candidate.paths)}
    try:
        volume = read_candidate(candidate, policy, modality=None if modality == "CT" else modality)
    except Refusal as refused:
        return {**header, "refused": refused.code, "reason": refused.reason, "numbers": refused.numbers}
    except FmctError as error:
        return {**header, "refused": "unreadable", "reason": str(error)}
    return {**header, **describe_volume(volume)}


def _rejected(item: Rejected) -> dict[str, Any]:
    return {"files": item.files, "refused": item.code, "reason": item.reason, "numbers": dict(item.numbers)}

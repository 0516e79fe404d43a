"""The audit of contrast headers: every series' header beside what a gate sees in its pixels, and a label where known.

Ye et al. (2022) found the header's tag missing or wrong in 1,496 of 1,979 scans. This is that comparison for one's own
data, and a table that filters or stratifies a store. The same call again goes on where it stopped.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmct.artefacts import read_json, write_json
from fmct.contrast.audit_sources import Audited, Gate, as_row, audited_series
from fmct.contrast.header import published_rule
from fmct.errors import ConfigError, DataError
from fmct.store.manifest import append_line, read_lines
from fmct.store.progress import Reporter, Silent
from fmct.table_files import read_rows, write_rows

FORMAT = ("fmct-contrast-audit", "1.0")
COLUMNS = (
    *("series", "patient", "header", "tags", "probability", "phase", "seconds", "decision", "disagreement"),
    *("label", "published_rule", "reason"),
)
_ROWS, TABLE, RECORD = "rows.jsonl", "table.csv", "audit.json"


@dataclass(frozen=True)
class Audit:
    """folder: where it lies. rows: one a series, by COLUMNS. model: the gate's name, "" without one."""

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    model: str = ""


def audit_contrast(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    gate: Gate | None = None,
    model: str = "",
    labels: str | Path = "",
    progress: Reporter | None = None,
) -> Audit:
    """Write OUT/table.csv with a row for every CT series of folders or stores, and return the audit.

    gate: says what the pixels show; model names it. labels: a table of series and contrast (1 or 0). decision: the
    gate's; without one the header's, uncertain where this is absent or ambiguous. Rows that OUT has are not made again.
    Raises DataError for another model than OUT's, for labels that miss, repeat or do not know a series, and when there
    is no series.
    """
    out, progress = Path(out), progress or Silent()
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, {"model": model})
    items = list(audited_series(sources))
    _check_names(items)
    truth = read_truth(labels, [item.series for item in items]) if labels else {}
    done = {row["series"]: row for row in map(json.loads, read_lines(out / _ROWS))}
    progress.start(len(items))
    rows = []
    for item in items:
        row = done.get(item.series)
        if row is None:
            row = _row(item, gate)
            append_line(out / _ROWS, json.dumps(row, allow_nan=False))
        rows.append({**row, "label": truth.get(item.series)})
        progress.advance(f"{sum(r['disagreement'] == 'yes' for r in rows)} disagree")
    progress.close()
    write_rows(out / TABLE, COLUMNS, rows)
    return Audit(out, rows, model)


def read_truth(path: str | Path, series: Sequence[str]) -> dict[str, int]:
    """Return {series: 1 or 0} of a table with the columns series and contrast; an empty cell is unknown, and left out.

    Joined by id, never by position. A series may also be named as its path ends. Raises DataError that names the ids
    which are missing, stand there twice, or belong to no series.
    """
    rows = read_rows(path)
    if not {"series", "contrast"} <= set(rows[0]):
        raise DataError(f"{path}: expected the columns series and contrast; found {', '.join(rows[0])}.")
    wrong = [row["series"] for row in rows if row["contrast"].strip() not in ("0", "1", "0.0", "1.0", "")]
    if wrong:
        raise DataError(f"{path}: contrast is 1, 0 or empty; it is not for {_listed(wrong)}.")
    matches = {_id(row): _matching(_id(row), series) for row in rows}
    named = Counter(name for row in rows for name in matches[_id(row)])
    faults = {
        "stand there twice": [name for name, count in named.items() if count > 1],
        "are no series of the sources": [name for name, found in matches.items() if not found],
        "mean several series": [name for name, found in matches.items() if len(found) > 1],
        "are missing": [name for name in series if name not in named],
    }
    for what, ids in faults.items():
        if ids:
            raise DataError(f"{path}: {len(ids)} ids {what}: {_listed(ids)}. One row for each series is expected.")
    return {matches[_id(row)][0]: int(float(row["contrast"])) for row in rows if row["contrast"].strip()}


def _id(row: Mapping[str, str]) -> str:
    return row["series"].strip().rstrip("/")


def _matching(name: str, series: Sequence[str]) -> list[str]:
    """Return the series that a name means: its id, or the id's beginning or end at a whole part of its path."""
    exact = [s for s in series if s == name]
    return exact or [s for s in series if s.endswith(f"/{name}") or s.split("#")[0] in (name,)]


def _row(item: Audited, gate: Gate | None) -> dict[str, Any]:
    state, slices = item.header()
    row: dict[str, Any] = {"series": item.series, "patient": item.patient, "header": state.state}
    row |= {"tags": " ".join(state.tags), "published_rule": published_rule(slices) if slices else "absent"}
    row |= {"probability": None, "phase": "", "seconds": None}
    if gate is None:
        row["decision"] = state.state if state.state in ("yes", "no") else "uncertain"
        return {**row, "disagreement": "", "reason": f"header: {state.reason}"}
    try:
        call = item.call(gate)
    except DataError as error:
        return {**row, "decision": "uncertain", "disagreement": "", "reason": f"pixels not read: {error}"}
    row |= as_row(call)
    row["decision"] = call.decision
    comparable = state.state in ("yes", "no") and call.decision in ("yes", "no")
    row["disagreement"] = ("yes" if state.state != call.decision else "no") if comparable else ""
    told = f"; model: {call.reason}" if call.reason else ""
    return {**row, "reason": f"header: {state.reason}{told}"}


def _claim(out: Path, settings: dict[str, str]) -> None:
    """Raise DataError when OUT holds the audit of another model."""
    own = {"model": _fingerprint(settings["model"])}
    if (out / RECORD).is_file():
        known = read_json(out / RECORD, *FORMAT)
        if known != own:
            raise DataError(
                f"{out}: holds an audit with another model ({known['model'] or 'none'}). Name a new folder."
            )
    else:
        if any(out.iterdir()):
            raise ConfigError(f"{out}: not empty, and no audit. Name a folder of its own.")
        write_json(out / RECORD, *FORMAT, own)


def _fingerprint(model: str) -> str:
    """Return what a model is: the hash of its checksums where it is a folder, else its name."""
    sums = Path(model) / "SHA256SUMS" if model else None
    return hashlib.sha256(sums.read_bytes()).hexdigest()[:16] if sums is not None and sums.is_file() else model


def _check_names(items: Sequence[Audited]) -> None:
    if not items:
        raise DataError("no CT series in the sources: expected DICOM folders, files, or a store of CT.")
    twice = [name for name, count in Counter(item.series for item in items).items() if count > 1]
    if twice:
        raise DataError(f"two sources hold series of one name: {_listed(twice)}. Audit them into folders of their own.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

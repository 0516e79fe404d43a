"""Predictions for many series: tables, masks, and a ledger of what failed. The same command again goes on."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import fmct
from fmct.artefacts import read_json, write_json
from fmct.errors import ArtefactError, DataError, FmctError, Refusal
from fmct.inference.components import CONNECTIVITY
from fmct.inference.predict_series import (
    COMPONENT_COLUMNS,
    PREDICTION_COLUMNS,
    SeriesResult,
    Wanted,
    failure_rows,
    predict_one,
)
from fmct.inference.predictions import COLUMNS, FORMAT, RECORD
from fmct.inference.series_source import Naming, Series, read_policy, series_of
from fmct.io import ReadPolicy
from fmct.publish.load_model import PublishedModel
from fmct.store.manifest import append_line
from fmct.store.patients import PatientNames
from fmct.store.progress import Reporter, Silent
from fmct.table_files import write_rows

LEDGER, SOURCES = "ledger.jsonl", "sources.csv"
FORMATS = {"csv": ".csv", "parquet": ".parquet", "json": ".jsonl"}


@dataclass
class Summary:
    """What came of a batch. failed: (patient, series, code, reason); kept: series done by an earlier run of it."""

    table: Path
    series: int = 0
    kept: int = 0
    failed: list[tuple[str, str, str, str]] = field(default_factory=list)
    positive: int = 0
    decided: int = 0

    def __str__(self) -> str:
        """Return what a user wants to know at the end."""
        parts = [f"{self.table}: {self.series - len(self.failed)} of {self.series} series predicted"]
        if self.kept:
            parts.append(f"{self.kept} of them by an earlier run")
        if self.decided:
            parts.append(f"{self.positive} of {self.decided} decisions positive")
        elif len(self.failed) < self.series:
            parts.append("probabilities only (the model carries no threshold)")
        return "; ".join(parts) + ". Research use only, not a medical device."

    def failures(self, *, shown: int = 20) -> list[str]:
        """Return a line for each failed series, and one for what is not shown."""
        lines = [f"failed: patient {p}, series {s}: {code}: {why}" for p, s, code, why in self.failed[:shown]]
        left = len(self.failed) - shown
        return lines if left <= 0 else [*lines, f"… and {left} more, in {self.table.with_name(LEDGER)}"]


def predict(
    model: PublishedModel,
    source: str | Path,
    folder: str | Path,
    *,
    table_format: str = "csv",
    wanted: Wanted | None = None,
    naming: Naming | None = None,
    policy: ReadPolicy | None = None,
    only: Mapping[str, str] | None = None,
    progress: Reporter | None = None,
) -> Summary:
    """Predict every series of a file, folder, DICOM folder or store, and return what came of it.

    `folder` gets predictions (one row per series and target), components where the model segments, the tables of a
    kind that has its own (fmct.inference.series_readers), masks/ and what else is `wanted` on each scan's own grid,
    predict.json, and ledger.jsonl: a line per series, also of those that could not be read or predicted, whose rows
    have no probability. Each series is read and predicted by itself: no
    other one beside it plays a part. A folder of the same model and settings is gone on with; another is refused.
    only: {series that is meant: its split in the table of predictions, "" for the store's}, None for all. Raises
    DataError when there is nothing to predict.
    """
    folder, wanted, progress = Path(folder), wanted or Wanted(), progress or Silent()
    if table_format not in FORMATS:
        raise DataError(f"format {table_format}: expected one of {', '.join(FORMATS)}.")
    modality = model.preprocessing.modality
    policy = policy or read_policy(modality)
    naming = naming or Naming(PatientNames())
    found = list(series_of(source, model.preprocessing, policy=policy, naming=naming, exclude=folder))
    if only is not None:
        found = [replace(s, split=only[s.series] or s.split) for s in found if s.series in only]
    if not found:
        listed = "" if only is None else " that the table names"
        raise DataError(f"{source}: nothing to predict: no {modality} series{listed} for this model there.")
    _refuse_equal_names(found)
    _open_folder(folder, model, wanted)
    summary = Summary(folder / f"predictions{FORMATS[table_format]}", len(found))
    done = _read_ledger(folder)
    model.channels_last()
    progress.start(len(found))
    try:
        for series in found:
            if series.series in done and done[series.series]["patient"] == series.patient:
                summary.kept += 1
            else:
                done[series.series] = _predicted(model, series, folder, wanted)
                append_line(folder / LEDGER, json.dumps(done[series.series], allow_nan=False))
            progress.advance(f"{sum(line['code'] != '' for line in done.values())} failed")
    finally:
        progress.close()
    _write_tables(folder, [done[series.series] for series in found], summary, FORMATS[table_format])
    if naming.key is None:
        rows = [{"patient": s.patient, "series": s.series, "file": s.path} for s in found if s.path]
        if rows:
            write_rows(folder / SOURCES, ("patient", "series", "file"), rows)
    return summary


def _predicted(model: PublishedModel, series: Series, folder: Path, wanted: Wanted) -> dict[str, Any]:
    """Return the ledger's line of one series, predicted or not."""
    began, code, reason = time.perf_counter(), "", ""
    result = SeriesResult([])
    try:
        result = predict_one(model, series, folder, wanted)
    except Refusal as refused:
        code, reason = refused.code, refused.reason
    except FmctError as error:
        code, reason = "not-predicted", str(error)
    except torch.OutOfMemoryError:
        code, reason = "out-of-memory", "the series does not fit into this device's memory"
    rows = result.rows or failure_rows(model, series, f"{code}: {reason}")
    return {
        "patient": series.patient,
        "series": series.series,
        "code": code,
        "reason": reason,
        "notes": result.notes,
        "windows": result.windows[0],
        "looked_at": result.windows[1],
        "seconds": round(time.perf_counter() - began, 2),
        "rows": [_without_nan(row) for row in rows],
        "components": [_without_nan(row) for row in result.components],
        "tables": {name: [_without_nan(row) for row in table] for name, table in result.tables.items()},
    }


def _write_tables(folder: Path, lines: Sequence[Mapping[str, Any]], summary: Summary, suffix: str) -> None:
    rows = [row for line in lines for row in line["rows"]]
    write_rows(folder / f"predictions{suffix}", (*COLUMNS, *PREDICTION_COLUMNS), rows)
    parts = [row for line in lines for row in line["components"]]
    if parts:
        write_rows(folder / f"components{suffix}", COMPONENT_COLUMNS, parts)
    for name in sorted({name for line in lines for name in line.get("tables", ())}):
        table = [row for line in lines for row in line.get("tables", {}).get(name, ())]
        if table:
            write_rows(folder / f"{name}{suffix}", tuple(table[0]), table)
    summary.failed = [(line["patient"], line["series"], line["code"], line["reason"]) for line in lines if line["code"]]
    decisions = [row["decision"] for row in rows if row.get("decision") is not None]
    summary.decided, summary.positive = len(decisions), sum(decisions)


def _open_folder(folder: Path, model: PublishedModel, wanted: Wanted) -> None:
    """Make `folder` this prediction's, or check that it is already. Raises ArtefactError."""
    record = {
        "model": model.fingerprint,
        "origin": model.origin if "@" in model.origin else Path(model.origin).name,
        "kind": model.record.kind,
        "targets": list(model.targets),
        "decision": model.decision.to_dict() if model.decision else None,
        "settings": asdict(wanted),
        "connectivity": CONNECTIVITY,
        "notes": list(model.record.pretrained.get("overlap", ())),
        "fmct": fmct.__version__,
        "use": "research use only, not a medical device",
    }
    if (folder / RECORD).is_file():
        there = read_json(folder / RECORD, *FORMAT)
        changed = [key for key in ("model", "targets", "decision", "settings") if there.get(key) != record[key]]
        if changed:
            raise ArtefactError(
                f"{folder}: holds predictions of another {' and '.join(changed)}; nothing was changed. Choose another "
                "folder."
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtefactError(f"{folder}: exists and holds no predictions; nothing was written. Choose another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot be written ({error.strerror}). Choose another folder.") from None
    write_json(folder / RECORD, *FORMAT, record)


def _read_ledger(folder: Path) -> dict[str, dict[str, Any]]:
    """Return {series: line} of those that an earlier run predicted; failures are tried again."""
    path, done = folder / LEDGER, {}
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # cut short by a kill
            if line["code"]:
                done.pop(line["series"], None)
            else:
                done[line["series"]] = line
    return done


def _refuse_equal_names(found: Sequence[Series]) -> None:
    names = [series.series for series in found]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError(f"two scans would both be called {twice!r} in the tables. Predict them into two folders.")


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}

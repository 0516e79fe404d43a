"""Label tables: what is known of patients and series. An empty cell is unknown; it is never 0."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmct.errors import DataError
from fmct.table_files import read_rows

UNKNOWN = math.nan
VALUES = {"0": 0.0, "0.0": 0.0, "False": 0.0, "1": 1.0, "1.0": 1.0, "True": 1.0, "": UNKNOWN}
_MOST_LISTED = 8
_SERIES_COLUMNS = ("series", "id", "file")


@dataclass(frozen=True)
class LabelRow:
    """One row: `series` is "" where it holds for every series of the patient, and the other way round.

    labels: {target: 0, 1 or NaN}. line: in the file, counted from 1. split: "" where the table has none.
    """

    line: int
    patient: str
    series: str
    labels: Mapping[str, float]
    split: str


@dataclass(frozen=True)
class CellRow:
    """A row before its values are looked at: cells are the targets' texts. See LabelRow."""

    line: int
    patient: str
    series: str
    cells: Mapping[str, str]
    split: str


def read_label_table(path: str | Path, targets: Sequence[str]) -> list[LabelRow]:
    """Return the rows of a CSV, Parquet or JSON-lines table with the columns patient and/or series, and the targets.

    A column `split` is taken too where there is one; others are ignored. Raises DataError that lists every fault with
    its line: a target that is no column, a value other than 0, 1 or empty, an id with spaces around it, a row without
    patient and series, and two rows for one series (or one patient).
    """
    rows, faults = _cells(Path(path), targets)
    faults += [
        (row.line, f"{target} is {text!r}; a label is 0, 1 or, when unknown, an empty cell")
        for row in rows
        for target, text in row.cells.items()
        if text.strip() not in VALUES
    ]
    _refuse(Path(path), faults, len(rows))
    return [
        LabelRow(
            row.line,
            row.patient,
            row.series,
            {target: VALUES[text.strip()] for target, text in row.cells.items()},
            row.split,
        )
        for row in rows
    ]


def read_label_cells(path: str | Path, targets: Sequence[str]) -> list[CellRow]:
    """Return the rows of a table as `read_label_table` does, for targets that are classes or numbers: any text.

    Raises DataError as that does, but for the values.
    """
    rows, faults = _cells(Path(path), targets)
    _refuse(Path(path), faults, len(rows))
    return rows


def _cells(path: Path, targets: Sequence[str]) -> tuple[list[CellRow], list[tuple[int, str]]]:
    """Return (rows, faults) of a table whose columns are as they must be."""
    rows = read_rows(path)
    columns = list(rows[0])
    series_column = next((name for name in _SERIES_COLUMNS if name in columns), None)
    _check_columns(path, columns, targets, series_column)
    faults: list[tuple[int, str]] = []
    parsed = []
    for line, row in enumerate(rows, start=2):
        ids = {"patient": row.get("patient", ""), "series": row.get(series_column or "", ""), "split": ""}
        ids["split"] = row.get("split", "")
        faults += [(line, fault) for fault in _faulty_ids(ids)]
        parsed.append(CellRow(line, cells={target: row[target] for target in targets}, **ids))
    return parsed, [*faults, *_twice(parsed)]


def _refuse(path: Path, faults: Sequence[tuple[int, str]], rows: int) -> None:
    if faults:
        raise DataError(told(path, faults, rows, "a table of labels"))


def told(path: Path, faults: Sequence[tuple[int, str]], rows: int, what: str) -> str:
    """Return one paragraph about the faults (line, text) of a table of `rows` rows."""
    listed = [f"line {line}: {text}" for line, text in sorted(faults)[:_MOST_LISTED]]
    more = f"; and {len(faults) - _MOST_LISTED} more" if len(faults) > _MOST_LISTED else ""
    count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    return f"{path}: {count} in {what} of {rows} rows. {'; '.join(listed)}{more}. Mend these rows."


def _check_columns(path: Path, columns: Sequence[str], targets: Sequence[str], series_column: str | None) -> None:
    spaced = [name for name in columns if name != name.strip() or "\ufeff" in name]
    if spaced:
        raise DataError(
            f"{path}: the column {spaced[0]!r} has spaces or a byte-order mark around its name. Take them off."
        )
    missing = [target for target in targets if target not in columns]
    if missing or ("patient" not in columns and series_column is None):
        wanted = ", ".join(missing) if missing else "patient or series"
        raise DataError(f"{path}: no column {wanted}; its columns are {', '.join(columns)}.")
    if {*targets} & {"patient", "split", *_SERIES_COLUMNS}:
        raise DataError(f"{path}: patient, series and split cannot be targets.")


def _faulty_ids(ids: Mapping[str, str]) -> Iterator[str]:
    for name, value in ids.items():
        if value != value.strip() or any(mark in value for mark in "\ufeff\n\t\xa0"):
            yield f"{name} {value!r} has spaces around it or characters that cannot be seen; ids are compared exactly"
    if not ids["patient"].strip() and not ids["series"].strip():
        yield "neither patient nor series is given"


def _twice(rows: Sequence[CellRow]) -> Iterator[tuple[int, str]]:
    """Yield rows that name what an earlier one named, and patients with two splits."""
    first: dict[tuple[str, str], int] = {}
    splits: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        key = ("", row.series) if row.series else (row.patient, "")
        if key in first:
            kind, name = ("series", row.series) if row.series else ("patient", row.patient)
            yield row.line, f"{kind} {name} stands in line {first[key]} already"
        first.setdefault(key, row.line)
        if row.patient and row.split:
            splits[row.patient].setdefault(row.split, row.line)
    for patient, found in splits.items():
        if len(found) > 1:
            where = ", ".join(f"{split} in line {line}" for split, line in found.items())
            yield max(found.values()), f"patient {patient} is in two splits: {where}"

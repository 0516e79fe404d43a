"""Tables as CSV, Parquet or JSON lines: rows of text cells, and one paragraph where a file is not such a table."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmct.artefacts import write_bytes
from fmct.errors import DataError

SUFFIXES = (".csv", ".parquet", ".jsonl")


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a .csv, .parquet or .jsonl file, every cell as text; an empty cell is "".

    A byte-order mark is taken off. Raises DataError for another kind of file, semicolons or tabs as separators, a
    column named twice, a row of another length, and no rows at all.
    """
    path = Path(path)
    try:
        rows = _READERS[_suffix(path)](path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: not readable as a table ({error}).") from None
    if not rows:
        raise DataError(f"{path}: the table has no rows.")
    return rows


def write_rows(path: str | Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows atomically in the format that the suffix says. None and NaN become empty cells (null in Parquet)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{column: _plain(row.get(column)) for column in columns} for row in rows]
    write_bytes(path, _WRITERS[_suffix(path)](columns, plain))


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: expected a table named {', '.join(SUFFIXES)}; got {path.suffix or 'no suffix'}.")
    return path.suffix.lower()


def _read_csv(path: Path) -> list[dict[str, str]]:
    text = path.read_text(encoding="utf-8-sig")
    first = text.partition("\n")[0]
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if mark in first and "," not in first:
            raise DataError(
                f"{path}: its columns are separated by {name}; expected commas (and a point as decimal mark). Some "
                "spreadsheet programs save so in some languages: save it as comma-separated UTF-8."
            )
    lines = list(csv.reader(io.StringIO(text, newline="")))
    header = lines[0] if lines else []
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} stands twice in its first line.")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(f"{path}: row {number} has {len(cells)} cells; its first line names {len(header)} columns.")
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _read_jsonl(path: Path) -> list[dict[str, str]]:
    objects = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not all(isinstance(item, dict) for item in objects):
        raise ValueError("every line has to be one object")
    columns = list(dict.fromkeys(name for item in objects for name in item))
    return [{column: _text(item.get(column)) for column in columns} for item in objects]


def _read_parquet(path: Path) -> list[dict[str, str]]:
    from pyarrow import parquet

    return [{name: _text(value) for name, value in row.items()} for row in parquet.read_table(path).to_pylist()]


def _write_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text(row[column]) for column in columns] for row in rows)
    return buffer.getvalue().encode("utf-8")


def _write_jsonl(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    lines = (json.dumps({column: row[column] for column in columns}, allow_nan=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _write_parquet(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pa.table({column: [row[column] for row in rows] for column in columns}), buffer)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)


_READERS = {".csv": _read_csv, ".parquet": _read_parquet, ".jsonl": _read_jsonl}
_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet, ".jsonl": _write_jsonl}

"""Tables about a store's series, such as an audit's: their rows by series, for strata and filters. Joined by id."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fmct.errors import ConfigError, DataError
from fmct.store.manifest import Entry
from fmct.table_files import read_rows


def read_entry_table(
    path: str | Path, entries: Sequence[Entry], *, column: str = ""
) -> Mapping[str, Mapping[str, str]]:
    """Return {entry id: its row} of a table with the column series: the entries' ids. Rows of other stores are let be.

    column: one that has to be there. Raises ConfigError for a table that is none or lacks a column, DataError that
    names the ids for a series that stands there twice or is missing.
    """
    try:
        rows = read_rows(path)
    except DataError as error:
        raise ConfigError(str(error)) from None
    absent = [name for name in ("series", column) if name and name not in rows[0]]
    if absent:
        raise ConfigError(f"{path}: no column {absent[0]}; found {', '.join(rows[0])}.")
    counts = Counter(row["series"].strip() for row in rows)
    twice = [entry.id for entry in entries if counts[entry.id] > 1]
    missing = [entry.id for entry in entries if not counts[entry.id]]
    for ids, what in ((twice, "stand there twice"), (missing, "are missing")):
        if ids:
            raise DataError(
                f"{path}: {len(ids)} series of the store {what}: {', '.join(ids[:5])}{' …' if len(ids) > 5 else ''}. "
                "Expected one row for each, by its id in manifest.jsonl."
            )
    return {row["series"].strip(): row for row in rows}

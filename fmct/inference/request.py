"""What a user asks of a model: where the scans are, which of them are meant, and whose key names them."""

from pathlib import Path

from fmct.errors import DataError
from fmct.store.fingerprint import PseudonymKey, load_key
from fmct.table_files import read_rows


def source_there(path: str | Path) -> Path:
    """Return the path of scans. Raises DataError where nothing is."""
    if not Path(path).exists():
        raise DataError(f"{path}: no such file or folder. Expected a scan, a folder of scans, or a store.")
    return Path(path)


def key_there(path: str | Path | None) -> PseudonymKey | None:
    """Return a store's key, None for no path. Raises DataError where none is: here, none is ever made."""
    if not path:
        return None
    if not Path(path).is_file():
        raise DataError(f"{path}: no such key file. Expected the one that lies beside a store.")
    return load_key(Path(path), expected=None)


def read_series_list(table: str | Path, split: str = "") -> dict[str, str]:
    """Return {series: its split, "" where there is none} of a table with a column series, such as RUN/cohort.csv.

    split: the rows of that split alone. Raises DataError for a missing column, or when there are none.
    """
    rows = read_rows(table)
    if "series" not in rows[0] or (split and "split" not in rows[0]):
        raise DataError(f"{table}: expected a column series{' and a column split' if split else ''}.")
    found = {row["series"]: row.get("split", "") for row in rows if not split or row["split"] == split}
    if not found:
        raise DataError(f"{table}: no row of the split {split!r}.")
    return found

"""The record of which patient is in which split, as `fmct split` wrote it."""

import csv
import io
from pathlib import Path

from fmct.errors import DataError

SPLITS = "splits.csv"


def read_splits(store: Path) -> dict[str, str]:
    """Return {patient: split} of a store's `splits.csv`, {} when there is none. Raises DataError when damaged."""
    path = Path(store) / SPLITS
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    rows = list(csv.DictReader(io.StringIO(text)))
    if rows and not {"patient", "split"} <= set(rows[0]):
        raise DataError(f"{path}: expected the columns patient and split, found {', '.join(map(str, rows[0]))}.")
    splits: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        if not row["patient"] or not row["split"]:
            raise DataError(f"{path}: line {number}: patient or split is empty.")
        if splits.setdefault(row["patient"], row["split"]) != row["split"]:
            raise DataError(f"{path}: line {number}: patient {row['patient']} is in two splits.")
    return splits

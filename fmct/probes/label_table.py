"""Label tables: one value per series or patient. An empty cell is unknown and leaves the series out; it is never 0."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmct.errors import DataError
from fmct.store.manifest import Entry

KINDS = ("binary", "classes", "continuous")
_MOST_CLASSES = 10
_UNKNOWN = {"", "na", "nan", "n/a", "none", "unknown", "?"}


@dataclass(frozen=True)
class Labels:
    """One target of some series. kind: of KINDS; values: (S,) class numbers or reals; classes: names in order."""

    kind: str
    ids: list[str]
    values: np.ndarray
    classes: list[str]

    @property
    def metric(self) -> str:
        """What a probe of this kind is scored by."""
        return {"binary": "AUROC", "classes": "macro AUROC, one against the rest", "continuous": "R²"}[self.kind]


def read_labels(path: str | Path, target: str, entries: Sequence[Entry], *, kind: str = "auto") -> Labels:
    """Return the known labels of a store's entries from a CSV with the column `target` and one of id or patient.

    kind `auto`: two different values are binary; whole numbers or words of at most 10 kinds are classes; else
    continuous. Raises DataError for a missing column, contradicting rows, an id that means nothing, or one value only.
    """
    rows = _read_rows(Path(path), target)
    key = "id" if "id" in rows[0] else "patient"
    given: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        text = (row[target] or "").strip()
        if text.lower() not in _UNKNOWN and given.setdefault(row[key], text) != text:
            raise DataError(f"{path}: line {number}: {key} {row[key]} has two values of {target}.")
    of_entry = {entry.id: given[getattr(entry, key)] for entry in entries if getattr(entry, key) in given}
    if not of_entry:
        raise DataError(
            f"{path}: no {key} with a known {target} is in the store. Use the pseudonyms of its manifest "
            f"(such as {getattr(entries[0], key) if entries else 'none: the store is empty'})."
        )
    ids = list(of_entry)
    return _typed(ids, [of_entry[name] for name in ids], kind, f"{path}: {target}")


def _read_rows(path: Path, target: str) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a CSV of labels ({error}).") from None
    if not rows or target not in rows[0] or not {"id", "patient"} & set(rows[0]):
        found = ", ".join(rows[0]) if rows else "no rows"
        raise DataError(f"{path}: expected the columns {target} and id (or patient), found {found}.")
    return rows


def _typed(ids: list[str], texts: list[str], kind: str, where: str) -> Labels:
    numbers = [_number(text) for text in texts]
    numeric = all(number is not None for number in numbers)
    different = sorted(set(texts), key=lambda text: (_number(text) is None, _number(text) or 0.0, text))
    if kind == "auto":
        whole = not numeric or all(float(number or 0.0).is_integer() for number in numbers)
        few = len(different) <= _MOST_CLASSES
        kind = "binary" if len(different) == 2 else "classes" if whole and few else "continuous"
    if len(different) < 2:
        raise DataError(f"{where}: all {len(texts)} known labels are {different[0]}; a probe needs two values.")
    if kind == "continuous" and not numeric:
        raise DataError(f"{where}: {next(t for t, n in zip(texts, numbers, strict=True) if n is None)!r} is no number.")
    if kind == "binary" and len(different) != 2:
        raise DataError(f"{where}: expected two values, found {', '.join(different[:6])}.")
    if kind == "continuous":
        return Labels(kind, ids, np.array(numbers, dtype=np.float64), [])
    return Labels(kind, ids, np.array([different.index(text) for text in texts], dtype=np.float64), different)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None

"""Labels for probes: one value per series or patient, of two kinds, several, or a number; unknown is left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmct.data.label_table import read_label_cells
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
    """Return the known labels of a store's entries from a table as fine-tuning reads it: the column `target`, and
    patient and/or series (or id) by pseudonym; a series' own row comes before its patient's.

    kind `auto`: two different values are binary; whole numbers or words of at most 10 kinds are classes; else
    continuous. Raises DataError for a table that is none, an id that means nothing, or one value only.
    """
    rows = read_label_cells(path, [target])
    known = [(row, row.cells[target].strip()) for row in rows if row.cells[target].strip().lower() not in _UNKNOWN]
    own = {row.series: text for row, text in known if row.series}
    of_patient = {row.patient: text for row, text in known if not row.series}
    of_entry = {
        entry.id: own.get(entry.id, of_patient.get(entry.patient))
        for entry in entries
        if entry.id in own or entry.patient in of_patient
    }
    if not of_entry:
        example = f"{entries[0].id} of patient {entries[0].patient}" if entries else "none: the store is empty"
        raise DataError(
            f"{path}: no series with a known {target} is in the store. Use the pseudonyms of its manifest (such as "
            f"{example})."
        )
    return _typed(list(of_entry), [str(text) for text in of_entry.values()], kind, f"{path}: {target}")


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

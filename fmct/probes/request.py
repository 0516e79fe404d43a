"""What a user asks of a probe, as text: which patients are scored, which blocks are read."""

from pathlib import Path

from fmct.errors import DataError
from fmct.store.splits import read_splits


def patients_of(store: str | Path, *, split: str | None = None, listed: str | None = None) -> list[str] | None:
    """Return the patients of a split of STORE/splits.csv, or those that are listed; None where neither is given.

    listed: `a,b,c`, or a file with one a line. Raises DataError for a split without patients.
    """
    if split:
        splits = read_splits(Path(store))
        chosen = sorted(patient for patient, name in splits.items() if name == split)
        if not chosen:
            known = ", ".join(sorted(set(splits.values()))) or "none: run fmct split first"
            raise DataError(f"--split {split}: no patient of {store} has it. Splits: {known}.")
        return chosen
    if not listed:
        return None
    path = Path(listed)
    text = path.read_text(encoding="utf-8") if path.is_file() else listed.replace(",", "\n")
    return [line.strip() for line in text.splitlines() if line.strip()]


def layers_of(text: str | None) -> list[int] | None:
    """Return block numbers of a text such as `2,5` or `-2,-1`. Raises DataError."""
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError:
        raise DataError(f"--layers {text}: expected block numbers such as 2,5 or -2,-1.") from None

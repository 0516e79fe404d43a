"""Patient-level splits. `splits.csv` is the record: its rows are never changed, new patients are appended."""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fmct.artefacts import write_text
from fmct.errors import ConfigError
from fmct.store.entry_table import read_entry_table
from fmct.store.manifest import Entry
from fmct.store.reader import Store
from fmct.store.split_table import SPLITS, read_splits

METHODS = ("hash", "stratified")


@dataclass(frozen=True)
class SplitConfig:
    """fractions: {split: share of patients}, summing to 1. method: `hash` or `stratified`; by: what strata share.

    by: modality, spacing (slice distance: below 1.5, 1.5 to 3.5, above), facts.NAME, a CSV with the columns patient
    and stratum (patient as in the manifest), or TABLE.csv:COLUMN of a table with a row for every series, such as
    `fmct curate contrast` writes (by=AUDIT/table.csv:decision).
    """

    method: str = "hash"
    fractions: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "validation": 0.1, "test": 0.1})
    by: str = ""
    seed: int = 0


def split(
    store: Store,
    *,
    fractions: Mapping[str, float],
    method: str = "hash",
    seed: int = 0,
    by: str | None = None,
) -> dict[str, str]:
    """Give every patient of a store without a row one, append those rows, and return {patient: split}.

    hash: a patient's place depends on the patient, the seed and the fractions alone. stratified: within each stratum,
    patients in hash order fill the split that is furthest below its share, earlier rows counted. Raises ConfigError for
    fractions or a method that make no sense, DataError for a damaged file.
    """
    names = _check(fractions, method, by)
    known = read_splits(store.path)
    patients = list(dict.fromkeys(entry.patient for entry in store.entries))
    new = [patient for patient in patients if patient not in known]
    if method == "hash":
        rows = {patient: _by_hash(_unit(patient, seed), fractions) for patient in sorted(new)}
    else:
        rows = _stratified(
            sorted(new, key=lambda p: _unit(p, seed)), known, _strata(store.entries, by or ""), fractions
        )
    unknown = sorted(set(known.values()) - set(names))
    if rows and unknown:
        raise ConfigError(
            f"fractions: {store.path / SPLITS} has the split {unknown[0]!r}, these fractions do not. Name the same."
        )
    if rows:
        path = store.path / SPLITS
        before = path.read_text(encoding="utf-8") if path.exists() else "patient,split\n"
        if not before.endswith("\n"):
            before += "\n"
        write_text(path, before + "".join(f"{patient},{place}\n" for patient, place in rows.items()))
    return {**known, **rows}


def _check(fractions: Mapping[str, float], method: str, by: str | None) -> list[str]:
    names = list(fractions)
    values = list(fractions.values())
    if not names or any(not 0 <= v <= 1 for v in values) or abs(sum(values) - 1) > 1e-6:
        raise ConfigError(f"fractions: expected shares from 0 to 1 that sum to 1, got {dict(fractions)}.")
    for name in names:
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise ConfigError(f"fractions: {name!r} is not a usable name of a split: letters, digits, - and _ only.")
    if method not in METHODS:
        raise ConfigError(f"method={method}: expected one of {', '.join(METHODS)}.")
    if bool(by) != (method == "stratified"):
        raise ConfigError(
            "method=stratified needs by=… (modality, spacing, facts.NAME or a CSV), method=hash takes none."
        )
    return names


def _unit(patient: str, seed: int) -> float:
    """Return a number in [0, 1) that a patient and a seed decide."""
    digest = hashlib.sha256(f"fmct split {seed} {patient}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _by_hash(place: float, fractions: Mapping[str, float]) -> str:
    edge = 0.0
    for name, share in fractions.items():
        edge += share
        if place < edge:
            return name
    return [name for name, share in fractions.items() if share > 0][-1]


def _stratified(
    new: Sequence[str], known: Mapping[str, str], strata: Mapping[str, str], fractions: Mapping[str, float]
) -> dict[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for patient, place in known.items():
        if patient in strata:
            counts[strata[patient]][place] += 1
    rows = {}
    for patient in new:
        count = counts[strata[patient]]
        total = sum(count[name] for name in fractions) + 1
        rows[patient] = max(fractions, key=lambda name: fractions[name] * total - count[name])
        count[rows[patient]] += 1
    return rows


def _strata(entries: Sequence[Entry], by: str) -> dict[str, str]:
    """Return {patient: stratum}; a patient with several series has all their values as one stratum."""
    if by.endswith(".csv"):
        return _strata_of_table(Path(by), entries)
    values: dict[str, set[str]] = defaultdict(set)
    value = _value_of(by, entries)
    for entry in entries:
        values[entry.patient].add(value(entry))
    return {patient: " ".join(sorted(found)) for patient, found in values.items()}


def _value_of(by: str, entries: Sequence[Entry]) -> Callable[[Entry], str]:
    table, colon, column = by.rpartition(":")
    if colon and table.endswith((".csv", ".parquet", ".jsonl")):
        rows = read_entry_table(table, entries, column=column)
        return lambda entry: rows[entry.id][column].strip()
    if by == "modality":
        return lambda entry: entry.modality
    if by == "spacing":
        return lambda entry: str(sum(max(entry.spacing_mm) >= edge for edge in (1.5, 3.5)))
    if by.startswith("facts."):
        return lambda entry: str(entry.facts.get(by.removeprefix("facts."), "absent"))
    raise ConfigError(
        f"by={by}: expected modality, spacing, facts.NAME, a CSV with the columns patient and stratum, or "
        "TABLE.csv:COLUMN of a table with a row for every series."
    )


def _strata_of_table(path: Path, entries: Sequence[Entry]) -> dict[str, str]:
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"by={path}: not readable ({type(error).__name__}).") from None
    if not rows or not {"patient", "stratum"} <= set(rows[0]):
        raise ConfigError(f"by={path}: expected a CSV with the columns patient and stratum.")
    table = {str(row["patient"]).strip(): str(row["stratum"]).strip() for row in rows}
    missing = sorted({entry.patient for entry in entries} - set(table))
    if missing:
        raise ConfigError(f"by={path}: no row for {len(missing)} patients of the store, such as {missing[0]}.")
    return table

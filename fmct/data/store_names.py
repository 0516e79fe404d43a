"""What users call things, resolved to a store's pseudonyms: patients and series of tables made outside the store."""

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from fmct.data.label_table import UNKNOWN, LabelRow, told
from fmct.data.mask_files import sources_path
from fmct.data.pairs import SeriesNames
from fmct.errors import DataError
from fmct.store.fingerprint import PseudonymKey, load_key
from fmct.store.manifest import Entry
from fmct.store.reader import Store
from fmct.table_files import read_rows

_ENDING = re.compile(r"(\.nii(\.gz)?|\.nrrd|\.nhdr|\.mha|\.mhd|\.dcm)$", re.IGNORECASE)


class StoreNames:
    """Patients and series by the names that a table may use.

    A patient: pseudonym; name as ingested (the store's key, beside it, tells its pseudonym); or a folder or file name,
    without its ending, that all and only this patient's series have in their path. A series: id, or path as ingested
    (whole, or its last parts).
    """

    def __init__(self, store: Store) -> None:
        self._store, self._series = store, SeriesNames(store)
        self._patients: dict[str, set[str]] = {entry.patient: {entry.patient} for entry in store.entries}
        self._key = _key_beside(store)
        of_id = {entry.id: entry.patient for entry in store.entries}
        table = sources_path(store)
        if table.is_file():
            with open(table, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row.get("id") in of_id and row.get("file")]
            for row in rows:
                path = PurePath(row["file"])
                for name in {*path.parts[1:-1], path.name, _ENDING.sub("", path.name)}:
                    self._patients.setdefault(name, set()).add(of_id[row["id"]])

    def patient(self, name: str) -> str | None:
        """Return a patient's pseudonym, None when the store has no such patient. Raises DataError for two."""
        if self._key is not None and self._key.pseudonym("patient", name) in self._patients:
            return self._key.pseudonym("patient", name)
        found = self._patients.get(name, set())
        if len(found) > 1:
            raise DataError(f"{self._store.path}: {name} names {len(found)} patients; use the store's pseudonyms.")
        return next(iter(found), None)

    def splits(self, path: Path) -> dict[str, str]:
        """Return {patient pseudonym: split} of a table. Raises DataError where a patient is in two, or none is known.

        Patients that the store does not have are left out.
        """
        rows = read_rows(path)
        if not {"patient", "split"} <= set(rows[0]):
            raise DataError(f"{path}: expected the columns patient and split, found {', '.join(rows[0])}.")
        lines: dict[str, dict[str, int]] = defaultdict(dict)
        faults = []
        for line, row in enumerate(rows, start=2):
            if not row["patient"].strip() or not row["split"].strip():
                faults.append((line, "patient or split is empty"))
                continue
            patient = self.patient(row["patient"])
            if patient is None and self.patient(row["patient"].strip()) is not None:
                faults.append((line, f"patient {row['patient']!r} has spaces around it; ids are compared exactly"))
            if patient is not None:
                lines[patient].setdefault(row["split"].strip(), line)
        for patient, found in lines.items():
            if len(found) > 1:
                where = ", ".join(f"{split} in line {line}" for split, line in found.items())
                faults.append((max(found.values()), f"patient {patient} is in two splits: {where}"))
        if faults:
            raise DataError(told(path, faults, len(rows), "a table of splits"))
        if not lines:
            raise DataError(f"{path}: none of its {len(rows)} patients is in the store {self._store.path}.")
        return {patient: next(iter(found)) for patient, found in lines.items()}

    def labels(
        self, rows: Sequence[LabelRow], entries: Sequence[Entry], targets: Sequence[str], path: Path
    ) -> tuple[dict[str, tuple[float, ...]], dict[str, str]]:
        """Return ({entry id: labels, of its own row, else of its patient's}, {patient: split}).

        Raises DataError where two rows mean one series or patient, a series is positive in its own row and its patient
        negative, a series belongs to another patient than its row says, or no row is about the store.
        """
        known = {entry.id: entry for entry in entries}
        own: dict[str, LabelRow] = {}
        of_patient: dict[str, LabelRow] = {}
        splits: dict[str, str] = {}
        faults: list[tuple[int, str]] = []
        for row in rows:
            entry, patient, fault = self._resolve(row)
            if fault:
                faults.append((row.line, fault))
            if fault or patient is None:
                continue
            if splits.setdefault(patient, row.split) != row.split:
                faults.append((row.line, f"patient {row.patient or patient} is in two splits"))
            place, key = (own, entry.id) if entry is not None else (of_patient, patient)
            if key in place:
                faults.append((row.line, f"means the same as line {place[key].line}"))
            elif entry is None or entry.id in known:
                place[key] = row
        merged, contradictions = _merged(own, of_patient, entries, targets)
        if faults or contradictions:
            raise DataError(told(path, [*faults, *contradictions], len(rows), "a table of labels"))
        if not merged:
            raise DataError(
                f"{path}: none of its {len(rows)} rows is about a series of {self._store.path}. Use the patients and "
                f"paths of {sources_path(self._store).name} beside the store, or the ids of its manifest (such as "
                f"{entries[0].patient if entries else 'none: no series is left'})."
            )
        return merged, {patient: split for patient, split in splits.items() if split}

    def _resolve(self, row: LabelRow) -> tuple[Entry | None, str | None, str]:
        """Return (series, patient, fault) of a row; a patient that the store does not have is None without fault."""
        patient = self.patient(row.patient) if row.patient else None
        if not row.series:
            return None, patient, ""
        try:
            entry = self._series.entry(row.series, f"line {row.line}")
        except DataError as error:
            absent = "is no series" in str(error)
            return None, None, "" if absent and self._is_absent(row, patient) else str(error)
        if row.patient and patient != entry.patient:
            return None, None, f"series {row.series} does not belong to patient {row.patient}"
        return entry, entry.patient, ""

    def _is_absent(self, row: LabelRow, patient: str | None) -> bool:
        """Return whether a row is about a patient that the store does not have at all."""
        return bool(row.patient) and patient is None


def _merged(
    own: Mapping[str, LabelRow], of_patient: Mapping[str, LabelRow], entries: Sequence[Entry], targets: Sequence[str]
) -> tuple[dict[str, tuple[float, ...]], list[tuple[int, str]]]:
    merged: dict[str, tuple[float, ...]] = {}
    faults = []
    for entry in entries:
        rows = [row for row in (own.get(entry.id), of_patient.get(entry.patient)) if row is not None]
        if not rows:
            continue
        labels = []
        for target in targets:
            values = [row.labels[target] for row in rows if row.labels[target] == row.labels[target]]
            if values[:2] == [1.0, 0.0]:
                lines = f"line {rows[0].line} says 1, its patient's line {rows[1].line} says 0"
                faults.append((rows[0].line, f"{target} of series {entry.id}: {lines}"))
            labels.append(values[0] if values else UNKNOWN)
        merged[entry.id] = tuple(labels)
    return merged, faults


def _key_beside(store: Store) -> PseudonymKey | None:
    """Return the store's key where it lies beside the store and is the right one, else None."""
    path = store.path.with_name(store.path.name + ".key")
    try:
        return load_key(path, expected=store.record["key_fingerprint"]) if path.is_file() else None
    except (DataError, KeyError):
        return None

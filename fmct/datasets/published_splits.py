"""The published splits of RSNA-ICH and CQ500: tables of image paths, one a split, met with the series of a store."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fmct.datasets.cq500 import patient_number
from fmct.datasets.stored_scans import StoredScan
from fmct.errors import DataError
from fmct.table_files import read_rows, write_rows

COLUMN = "img_path"


def published_splits(tables: Mapping[str, str | Path], scans: Sequence[StoredScan]) -> dict[str, str]:
    """Return {patient of the store: split} of tables {split: CSV with the column img_path}.

    A path names a series by its file's name (a study's or a series' UID, as for RSNA), or a patient by a part such as
    CQ500CT66. Patients that no table names have no split. Raises DataError when a patient is in two splits, or when a
    table names nobody in the store.
    """
    splits: dict[str, str] = {}
    for split, table in tables.items():
        rows = read_rows(table)
        if COLUMN not in rows[0]:
            raise DataError(
                f"{table}: no column {COLUMN}; found {', '.join(rows[0])}. Expected a published split file."
            )
        names = {_stem(row[COLUMN]) for row in rows}
        numbers = {number for row in rows if (number := patient_number(row[COLUMN])) is not None}
        patients = {scan.entry.patient for scan in scans if _is_named(scan, names, numbers)}
        if not patients:
            raise DataError(f"{table}: none of its {len(rows)} images is in the store. Is it another data set's split?")
        for patient in sorted(patients):
            if splits.setdefault(patient, split) != split:
                raise DataError(
                    f"patient {patient} is in {splits[patient]} and in {split}: these splits were made by series, not "
                    "by patient, and a result on them would be too good. Make your own: fmct split STORE."
                )
    return splits


def write_splits(path: str | Path, splits: Mapping[str, str]) -> None:
    """Write a table of patient and split, as fine-tuning reads it."""
    write_rows(path, ("patient", "split"), [{"patient": p, "split": s} for p, s in splits.items()])


def _stem(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".nii").removesuffix(".dcm")


def _is_named(scan: StoredScan, names: set[str], numbers: set[int]) -> bool:
    if numbers:
        found = patient_number(scan.found.patient or "")
        return (patient_number(scan.found.path) if found is None else found) in numbers
    return _stem(scan.found.path) in names or bool(names & set(scan.uids.values()))

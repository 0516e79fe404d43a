"""CQ500: the three readers' votes as shipped (`reads.csv`) become labels of patients, and of each of their series.

One line a patient, `CQ500-CT-<number>`, with a column `R1:…`, `R2:…`, `R3:…` for each reader and finding. The label is
the majority. Several series belong to a patient (thin, thick, plain, tilt-corrected): each gets the patient's label,
which is how results were published; the patient is the unit that counts here, so evaluation merges them again.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fmct.datasets.stored_scans import StoredScan
from fmct.errors import DataError
from fmct.table_files import read_rows

FINDINGS = (
    "ICH",
    "IPH",
    "IVH",
    "SDH",
    "EDH",
    "SAH",
    "BleedLocation-Left",
    "BleedLocation-Right",
    "ChronicBleed",
    "Fracture",
    "CalvarialFracture",
    "OtherFracture",
    "MassEffect",
    "MidlineShift",
)
PUBLISHED_FINDINGS = tuple(name for name in FINDINGS if "Fracture" not in name and name != "ChronicBleed")
"""The ten that FM-HCT reports, of which its macro mean is taken."""
READERS = ("R1", "R2", "R3")
_NAME = re.compile(r"CQ500-?CT-?(\d+)(?!\d)", re.IGNORECASE)
Labels = dict[int, dict[str, float | None]]


def read_reads(path: str | Path) -> Labels:
    """Return {patient number: {finding: 1, 0 or None}} by majority of three readers.

    An empty vote is unknown: two equal votes decide, else the label is None. Raises DataError for a missing column, a
    vote that is neither 0 nor 1, a name that is none, or a patient twice.
    """
    rows = read_rows(path)
    columns = ["name", *(f"{reader}:{finding}" for reader in READERS for finding in FINDINGS)]
    missing = [column for column in columns if column not in rows[0]]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing[:4])}; expected CQ500's reads.csv, as shipped.")
    labels: Labels = {}
    for number, row in enumerate(rows, start=2):
        patient = patient_number(row["name"])
        if patient is None or patient in labels:
            why = "is in an earlier line too" if patient is not None else "is no name such as CQ500-CT-0"
            raise DataError(f"{path}: line {number}: {row['name']!r} {why}.")
        labels[patient] = {
            finding: _majority([row[f"{reader}:{finding}"] for reader in READERS], f"{path}: line {number}: {finding}")
            for finding in FINDINGS
        }
    return labels


def patient_number(text: str) -> int | None:
    """Return the patient's number in `CQ500-CT-66` or `CQ500CT66 CQ500CT66`, None where there is none."""
    match = _NAME.search(text)
    return int(match[1]) if match else None


def label_scans(scans: Iterable[StoredScan], labels: Labels) -> list[tuple[StoredScan, Mapping[str, float | None]]]:
    """Return each scan with its patient's labels; a patient that reads.csv does not name is unknown.

    The patient is known by the DICOM PatientID or, failing that, by a folder's or file's name. Raises DataError when
    the two disagree, when series of one patient of the store belong to two of CQ500, or when nobody is known.
    """
    unknown: dict[str, float | None] = dict.fromkeys(FINDINGS)
    rows, known = [], 0
    owners: dict[str, int] = {}
    for scan in scans:
        number = _number_of(scan)
        if number is not None and owners.setdefault(scan.entry.patient, number) != number:
            raise DataError(
                f"patient {scan.entry.patient} of the store is CQ500-CT-{owners[scan.entry.patient]} and "
                f"CQ500-CT-{number}: their labels cannot both hold. Did two of them share a scan at ingest?"
            )
        known += number in labels
        rows.append((scan, labels.get(number, unknown) if number is not None else unknown))
    if not known:
        raise DataError(
            "nobody in the store is named in reads.csv: expected PatientID CQ500-CT-<number>, or folders such as "
            "'CQ500CT66 CQ500CT66', as CQ500 ships them."
        )
    return rows


def _number_of(scan: StoredScan) -> int | None:
    header, path = patient_number(scan.found.patient or ""), patient_number(scan.found.path)
    if header is not None and path is not None and header != path:
        raise DataError(f"a scan lies in the folder of CQ500-CT-{path}, and its header says CQ500-CT-{header}.")
    return header if header is not None else path


def _majority(votes: list[str], where: str) -> float | None:
    wrong = [vote for vote in votes if vote.strip() not in ("0", "1", "")]
    if wrong:
        raise DataError(f"{where}: a vote is 0, 1 or empty; found {wrong[0]!r}.")
    ones, zeros = (sum(vote.strip() == value for vote in votes) for value in ("1", "0"))
    return 1.0 if ones >= 2 else 0.0 if zeros >= 2 else None

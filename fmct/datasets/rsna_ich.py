"""RSNA 2019 intracranial haemorrhage: slice labels as shipped (`stage_2_train.csv`) become labels of series.

Each line is `ID_<slice>_<finding>,<0 or 1>`; the slice is `ID_<slice>.dcm`, all in one folder. A series has a finding
when a slice of it has; it is without when every slice was labelled and none has it; otherwise its label is unknown.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fmct.datasets.stored_scans import StoredScan
from fmct.errors import DataError

FINDINGS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
PUBLISHED_FINDINGS = ("any", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
"""The five that FM-HCT reports, of which its macro mean is taken."""
_ID = re.compile(rf"(.+)_({'|'.join(FINDINGS)})")
SliceLabels = dict[str, tuple[float | None, ...]]


def read_slice_labels(path: str | Path) -> SliceLabels:
    """Return {slice: one label a finding, in the order of FINDINGS, None where the file has none}.

    The published file repeats some lines; equal ones count once. Raises DataError for a line that is none, a label that
    is neither 0 nor 1, two that contradict each other, or a slice whose `any` contradicts the five others.
    """
    labels: dict[str, dict[str, float]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if header != ["ID", "Label"]:
                raise DataError(
                    f"{path}: expected the columns ID,Label of stage_2_train.csv, found {','.join(header)}."
                )
            for number, row in enumerate(rows, start=2):
                _add(labels, row, f"{path}: line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({type(error).__name__}). Expected RSNA's stage_2_train.csv.") from None
    if not labels:
        raise DataError(f"{path}: no labels in it.")
    for name, values in labels.items():
        kinds = [values[finding] for finding in FINDINGS[:-1] if finding in values]
        if "any" in values and len(kinds) == len(FINDINGS) - 1 and values["any"] != max(kinds):
            raise DataError(f"{path}: slice {name}: any is {values['any']:g}, its kinds say {max(kinds):g}.")
    return {name: tuple(values.get(finding) for finding in FINDINGS) for name, values in labels.items()}


def series_label(slices: Sequence[tuple[float | None, ...]]) -> dict[str, float | None]:
    """Return {finding: 1, 0 or None (unknown)} of a series from its slices' labels."""
    result: dict[str, float | None] = {}
    for number, finding in enumerate(FINDINGS):
        values = [labels[number] for labels in slices]
        if any(value == 1 for value in values):
            result[finding] = 1.0
        else:
            result[finding] = None if not values or any(value is None for value in values) else 0.0
    return result


def label_scans(
    scans: Iterable[StoredScan], labels: SliceLabels
) -> list[tuple[StoredScan, Mapping[str, float | None]]]:
    """Return each scan with its labels; a slice that the labels do not name is unknown.

    Raises DataError when not one slice of any scan is named there.
    """
    unknown = (None,) * len(FINDINGS)
    rows, known = [], 0
    for scan in scans:
        slices = [labels.get(name, unknown) for name in scan.slices]
        known += sum(values is not unknown for values in slices)
        rows.append((scan, series_label(slices)))
    if not known:
        raise DataError(
            "not one slice of the store is named in the labels: expected files called ID_….dcm, as RSNA ships them, "
            "and the labels of the same stage."
        )
    return rows


def _add(labels: dict[str, dict[str, float]], row: Sequence[str], where: str) -> None:
    match = _ID.fullmatch(row[0].strip()) if len(row) == 2 else None
    if match is None or row[1].strip() not in ("0", "1"):
        raise DataError(f"{where}: expected ID_SLICE_FINDING,0 or 1; found {','.join(row)[:80]}.")
    name, finding, value = match[1], match[2], float(row[1])
    if labels.setdefault(name, {}).setdefault(finding, value) != value:
        raise DataError(f"{where}: {row[0]} is both 0 and 1 in this file.")

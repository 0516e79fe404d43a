"""Phase and time of a cohort's series: joined by id, and every contradiction named with its line."""

import math
from pathlib import Path

import pytest

from fmct.contrast.labels import with_phases
from fmct.data.cohort import Cohort, CohortConfig, read_cohort
from fmct.errors import DataError
from fmct.tasks.contrast import LABELS
from tests.contrast import bright_vessels

ROWS = ["P00,P00/native.nii.gz,0,,", "P00,P00/arterial.nii.gz,1,arterial,31.5", "P01,,1,,"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> bright_vessels.Cohort:
    return bright_vessels.cohort(tmp_path_factory.mktemp("two"), patients=2)


def read(scans: bright_vessels.Cohort, folder: Path, rows: list[str]) -> Cohort:
    table = folder / "labels.csv"
    table.write_text("\n".join(["patient,series,contrast,phase,seconds", *rows]) + "\n")
    config = CohortConfig(store=str(scans.store), labels=str(table), targets=["contrast"], splits=str(scans.splits))
    return with_phases(read_cohort(config), table)


def test_labels_are_joined_by_id_in_any_order(scans: bright_vessels.Cohort, tmp_path: Path) -> None:
    """Reference A.12 item 11: never by position; a patient's row holds for every series of the patient."""
    cohort = read(scans, tmp_path, ROWS)
    turned = read(scans, tmp_path, ROWS[::-1])
    assert cohort.targets == LABELS
    found = {s.entry.id: s.labels for s in cohort.samples}
    assert {k: str(v) for k, v in found.items()} == {s.entry.id: str(s.labels) for s in turned.samples}
    by_label = sorted(found.values(), key=lambda labels: (labels[0], labels[1]))
    native = next(labels for labels in by_label if labels[0] == 0)
    arterial = next(labels for labels in by_label if labels[2] == 1)
    assert native[1:5] == (1, 0, 0, 0)  # without contrast it is native, whatever the cell says
    assert math.isnan(native[5])
    assert arterial == (1, 0, 1, 0, 0, 31.5)
    assert sum(math.isnan(labels[1]) for labels in by_label) == 2  # both series of P01: phase unknown


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("P00,P00/native.nii.gz,0,portal,", "line 2: phase is portal and contrast is 0"),
        ("P00,P00/native.nii.gz,1,native,", "line 2: phase is native and contrast is 1"),
        ("P00,P00/native.nii.gz,1,venous,", "line 2: phase is 'venous'"),
        ("P00,P00/native.nii.gz,1,,4000", "line 2: seconds is '4000'"),
        ("P00,P00/native.nii.gz,1,,soon", "line 2: seconds is 'soon'"),
        ("P00,P00/native.nii.gz,0,,30", "line 2: seconds is 30 in a series without contrast"),
        ("P00,P00/nobody.nii.gz,0,,", "P00/nobody.nii.gz"),
        ("P01,P00/native.nii.gz,0,,", "does not belong to patient P01"),
    ],
)
def test_what_cannot_be_is_named(scans: bright_vessels.Cohort, tmp_path: Path, row: str, says: str) -> None:
    """Reference A.12 item 11: a missing or duplicate or contradicting row raises with its line and id."""
    with pytest.raises(DataError, match=says.replace("(", r"\(")):
        read(scans, tmp_path, [row, ROWS[1], "P01,P01/native.nii.gz,0,,"])


def test_a_series_twice_is_refused(scans: bright_vessels.Cohort, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stands in line 2 already"):
        read(scans, tmp_path, [ROWS[1], ROWS[1], ROWS[0]])

import math
from pathlib import Path

import pytest

from fmct.errors import DataError
from fmct.inference.predictions import COLUMNS, Prediction, read_predictions, write_predictions

ROWS = [
    Prediction("p1", "s1", "pe", 0.1 + 0.2, logit=-0.847, decision=0, threshold=0.5, seed="0", split="val"),
    Prediction("p 2", "s,2", "pe", math.nan, error='too few slices; "12"'),
    Prediction("p3", "s3", "pe", 1.0, fold="2"),
]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_every_format_gives_the_same_rows_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"predictions.{suffix}"
    write_predictions(path, ROWS)
    back = read_predictions(path)
    assert [repr(row) for row in back] == [repr(row) for row in ROWS]
    assert [row.failed for row in back] == [False, True, False]


def test_columns_are_the_agreed_ones() -> None:
    agreed = "patient series target probability logit decision threshold seed fold split error"
    assert tuple(agreed.split()) == COLUMNS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patient,series,target\np,s,t\n", "no column probability"),
        ("patient,series,target,probability\np ,s,t,0.5\n", "row 2: patient is 'p ', with spaces"),
        ("patient,series,target,probability\n,s,t,0.5\n", "row 2: patient is empty"),
        ("patient,series,target,probability\np,s,t,1.5\n", r"row 2: probability 1.5 is outside 0\.\.1"),
        ('patient,series,target,probability\np,s,t,"0,5"\n', "no number"),
        ("patient,series,target,probability,decision\np,s,t,0.5,2\n", "decision 2; expected 0, 1"),
        ("patient,series,target,probability\np,s,t,0.5\np,s,t,0.6\n", "rows 2 and 3 both predict t of series s"),
        ("patient;series;target;probability\np;s;t;0.5\n", "separated by semicolons"),
        ("patient,series,target,probability\np,s,t\n", "row 2 has 3 cells"),
        ("patient,patient,target,probability\np,s,t,0.5\n", "'patient' stands twice"),
        ("patient,series,target,probability\n", "no rows"),
    ],
)
def test_faults_are_named_with_their_row(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_predictions(path)


def test_seeds_and_folds_are_no_duplicates_and_a_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(
        b"\xef\xbb\xbfpatient,series,target,probability,seed,fold\np,s,t,0.5,0,1\np,s,t,0.6,1,1\np,s,t,0.6,1,2\n"
    )
    assert [(row.seed, row.fold) for row in read_predictions(path)] == [("0", "1"), ("1", "1"), ("1", "2")]


def test_another_suffix_and_no_file_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a table named"):
        write_predictions(tmp_path / "p.xlsx", ROWS)
    with pytest.raises(DataError, match="not readable as a table"):
        read_predictions(tmp_path / "absent.csv")

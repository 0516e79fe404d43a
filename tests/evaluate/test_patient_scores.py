import math
from pathlib import Path

import numpy as np
import pytest

from fmct.errors import DataError
from fmct.evaluate.patient_scores import Truth, read_truth, score_units
from fmct.inference.predictions import Prediction


def truth_of(tmp_path: Path, text: str, *targets: str) -> Truth:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return read_truth(path, targets or ("pe",))


def predicted(*rows: tuple[str, str, float], **more: object) -> list[Prediction]:
    return [Prediction(patient, series, "pe", p, **more) for patient, series, p in rows]  # type: ignore[arg-type]


def test_unknown_is_never_zero(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, "patient,series,pe\na,1,0\na,2,\nb,1,1\nb,2,\nc,1,0\nc,2,0\nd,1,\ne,1,n/a\n")
    assert [truth.of_patient("pe", p) for p in "abcdex"] == [None, 1, 0, None, None, None]
    assert (truth.of_series("pe", "a", "1"), truth.of_series("pe", "a", "2")) == (0, None)


def test_a_row_without_series_means_the_patient(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, "patient,pe,site,sex\na,1,X,f\nb,0,Y,\n")
    assert truth.of_series("pe", "a", "any") == 1
    assert truth.facts["a"] == {"site": "X", "sex": "f"}
    several = truth_of(tmp_path, "patient,series,pe,kernel\na,1,1,soft\na,2,1,bone\n")
    assert several.facts["a"]["kernel"] == "several"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patient,series,ich\na,1,1\n", "no column pe"),
        ("patient,series,pe\na,1,2\n", "row 2: pe is '2'; expected 0, 1"),
        ("patient,series,pe\na,1,1\na,1,1\n", "rows 2 and 3 are both patient a, series 1"),
        ("patient,series,pe\n a,1,1\n", "spaces around"),
    ],
)
def test_faulty_labels_are_explained(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        truth_of(tmp_path, text)


def test_seeds_are_averaged_first_and_then_series_are_merged(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, "patient,pe\na,1\nb,0\n")
    rows = [
        *predicted(("a", "1", 0.2), ("a", "2", 0.9), ("b", "1", 0.4), seed="0"),
        *predicted(("a", "1", 0.8), ("a", "2", 0.3), ("b", "1", 0.0), seed="1"),
    ]
    highest = score_units(rows, truth, "pe")
    assert highest.probabilities == pytest.approx([0.6, 0.2])  # max(mean(.9, .3), mean(.2, .8)), not mean(max) = .85
    assert highest.seeds["0"] == pytest.approx([0.9, 0.4])
    assert score_units(rows, truth, "pe", merge="mean").probabilities == pytest.approx([0.55, 0.2])
    assert highest.patients == ["a", "b"]


def test_the_published_head_ct_case_has_patients_and_series(tmp_path: Path) -> None:
    """Rows are not patients: CQ500's 236 rows are of 71 patients; here 10 rows of 4."""
    counts = {"a": 4, "b": 3, "c": 2, "d": 1}
    truth = truth_of(tmp_path, "patient,pe\na,1\nb,0\nc,1\nd,0\n")
    rows = [p for name, n in counts.items() for p in predicted(*((name, str(k), 0.1 * k) for k in range(n)))]
    by_patient, by_series = score_units(rows, truth, "pe"), score_units(rows, truth, "pe", unit="series")
    assert (len(by_patient.labels), len(by_series.labels)) == (4, 10)
    assert by_patient.probabilities == pytest.approx([0.3, 0.2, 0.1, 0.0])
    assert by_series.patients.count("a") == 4


def test_thresholds_are_applied_to_the_merged_probability(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, "patient,pe\na,1\nb,0\nc,0\n")
    rows = [
        *predicted(("a", "1", 0.5), ("b", "1", 0.49), ("c", "1", 0.2), threshold=0.5),
        *predicted(("c", "2", 0.9), threshold=0.5, decision=1),
    ]
    scores = score_units(rows, truth, "pe")
    assert scores.decisions.tolist() == [1, 0, 1]  # N6: equality is positive
    assert scores.thresholds == (0.5,)
    assert score_units(rows, truth, "pe", merge="mean").decisions.tolist() == [1, 0, 1]
    assert not score_units(predicted(("a", "1", 0.9)), truth, "pe").decided  # N7: no threshold, no decision


def test_decisions_of_another_rule_are_merged_themselves(tmp_path: Path) -> None:
    """A volume threshold is in mm³: it says nothing about a probability."""
    truth = truth_of(tmp_path, "patient,pe\na,1\nb,0\n")
    rows = [
        *predicted(("a", "1", 0.1), threshold=250.0, decision=1),
        *predicted(("a", "2", 0.1), ("b", "1", 0.9), threshold=250.0, decision=0),
    ]
    scores = score_units(rows, truth, "pe")
    assert scores.decisions.tolist() == [1, 0]
    assert scores.thresholds == ()


def test_failed_scans_are_counted_as_wrong_not_dropped(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, "patient,pe\na,1\nb,0\nc,1\nd,\ne,1\n")
    rows = predicted(("a", "1", math.nan), ("b", "1", math.nan), ("c", "1", 0.9), ("c", "2", math.nan), ("d", "1", 0.5))
    scores = score_units([Prediction(**{**vars(p), "threshold": 0.5}) for p in rows], truth, "pe")
    assert scores.patients == ["a", "b", "c"]
    assert scores.failed.tolist() == [True, True, False]
    assert scores.counted.tolist() == [False, True, True]  # not positive; not negative; found
    assert scores.decided
    assert scores.flow == {
        "patients predicted": 4,
        "patients labelled": 4,
        "predicted, label unknown": 1,
        "labelled, not predicted": 1,
        "series": 4,
        "failed series": 3,
    }
    assert np.isnan(scores.with_decisions(np.ones(3), (0.1,)).decisions).tolist() == [True, True, False]

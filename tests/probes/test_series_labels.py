from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fmct.errors import DataError
from fmct.probes.cohort import Cohort, Fold
from fmct.probes.label_table import Labels, read_labels
from fmct.probes.series_labels import check_classes, knn_predictions, linear_predictions, out_of_fold, score
from tests.probes.references_probe import knn_scores, macro_auroc


@dataclass(frozen=True)
class Series:
    """What read_labels asks of a store's entry."""

    id: str
    patient: str


ENTRIES = [Series(f"s{k}", f"p{k // 2}") for k in range(8)]
BINARY = Labels("binary", [], np.array([]), ["0", "1"])
CLASSES = Labels("classes", [], np.array([]), ["a", "b", "c"])
REAL = Labels("continuous", [], np.array([]), [])


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def read(tmp_path: Path, values: list[str], **settings) -> Labels:
    rows = "".join(f"s{k},{value}\n" for k, value in enumerate(values))
    return read_labels(table(tmp_path / "labels.csv", f"id,grade\n{rows}"), "grade", ENTRIES, **settings)


def test_an_empty_label_is_unknown_and_never_zero(tmp_path: Path) -> None:
    labels = read(tmp_path, ["1", "", "0", "NA", "nan", "1", "unknown", "0"])
    assert labels.ids == ["s0", "s2", "s5", "s7"]
    np.testing.assert_array_equal(labels.values, [1, 0, 1, 0])
    assert (labels.kind, labels.classes) == ("binary", ["0", "1"])


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    assert read(tmp_path, ["yes", "no", "yes"]).classes == ["no", "yes"]
    grades = read(tmp_path, ["10", "2", "1", "2"])
    assert (grades.kind, grades.classes) == ("classes", ["1", "2", "10"])
    np.testing.assert_array_equal(grades.values, [2, 1, 0, 1])
    real = read(tmp_path, ["0.5", "2.25", "3"])
    assert (real.kind, real.classes) == ("continuous", [])
    np.testing.assert_array_equal(real.values, [0.5, 2.25, 3])
    assert read(tmp_path, ["10", "2", "1"], kind="continuous").values.tolist() == [10, 2, 1]


def test_labels_of_patients_hold_for_their_series(tmp_path: Path) -> None:
    path = table(tmp_path / "l.csv", "patient,sex\np0,F\np1,M\np9,M\n")
    labels = read_labels(path, "sex", ENTRIES)
    assert labels.ids == ["s0", "s1", "s2", "s3"]


def test_a_series_own_row_comes_before_its_patients(tmp_path: Path) -> None:
    """The table that fine-tuning reads, with both columns, serves a probe too."""
    path = table(tmp_path / "l.csv", "patient,series,side\np0,,left\np0,s1,right\n")
    labels = read_labels(path, "side", ENTRIES)
    assert dict(zip(labels.ids, labels.values.tolist(), strict=True)) == {"s0": 0, "s1": 1}
    assert labels.classes == ["left", "right"]


def test_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column grade"):
        read_labels(table(tmp_path / "l.csv", "id,other\ns0,1\n"), "grade", ENTRIES)
    with pytest.raises(DataError, match="line 3: series s0 stands in line 2 already"):
        read_labels(table(tmp_path / "l.csv", "id,grade\ns0,1\ns0,2\n"), "grade", ENTRIES)
    with pytest.raises(DataError, match="no series with a known grade"):
        read_labels(table(tmp_path / "l.csv", "id,grade\nzz,1\n"), "grade", ENTRIES)
    with pytest.raises(DataError, match="needs two values"):
        read(tmp_path, ["1", "1"])
    with pytest.raises(DataError, match="'b' is no number"):
        read(tmp_path, ["1", "b"], kind="continuous")
    with pytest.raises(DataError, match="not readable"):
        read_labels(tmp_path / "absent.csv", "grade", ENTRIES)
    with pytest.raises(DataError, match="class '1' has 1 patient"):
        check_classes(np.array([0, 0, 1, 1]), np.array(["a", "b", "c", "c"]), BINARY)


def test_knn_is_the_slow_one() -> None:
    random = np.random.default_rng(0)
    x, y, new = random.normal(size=(30, 6)), (random.random(30) < 0.4).astype(float), random.normal(size=(9, 6))
    expected = knn_scores(x, y, new, 5)
    patients = np.array([str(k) for k in range(30)])
    np.testing.assert_allclose(knn_predictions(x, y, new, patients, BINARY)[:, 1], expected)
    np.testing.assert_allclose(knn_predictions(x, y, new, patients, REAL)[:, 0], expected)


def test_scores_are_scikit_learns() -> None:
    random = np.random.default_rng(1)
    y = random.integers(0, 3, 40).astype(float)
    predicted = random.dirichlet([1, 1, 1], 40)
    assert score(predicted, y, CLASSES) == pytest.approx(macro_auroc(y, predicted))
    two = (y > 0).astype(float)
    assert score(predicted[:, :2], two, BINARY) == pytest.approx(float(roc_auc_score(two, predicted[:, 1])))
    assert score(y[:, None] * 0 + y.mean(), y, REAL) == pytest.approx(0)
    assert np.isnan(score(predicted, np.minimum(y, 1), CLASSES))
    assert np.isnan(score(predicted[:, :1], np.ones(40), REAL))


@pytest.mark.parametrize("labels", [BINARY, CLASSES, REAL], ids=lambda labels: labels.kind)
def test_probes_find_what_is_there(labels: Labels) -> None:
    random = np.random.default_rng(2)
    patients = np.repeat([f"p{k:02d}" for k in range(30)], 2)
    y = np.repeat(random.integers(0, max(2, len(labels.classes)), 30), 2).astype(float)
    if labels.classes:
        x = random.normal(size=(60, 12)) + 4 * random.normal(size=(len(labels.classes), 12))[y.astype(int)]
    else:  # on an arc, where both a line and an angle tell the value
        y = np.repeat(random.uniform(-1, 1, 30), 2)
        arc = np.stack([np.cos(y), np.sin(y)], axis=1)
        x = np.concatenate([10 * arc, random.normal(size=(60, 10))], axis=1)
    names = sorted(set(patients))
    cohort = Cohort(tuple(Fold(tuple(n for n in names if n not in names[k::3]), tuple(names[k::3])) for k in range(3)))
    for predict in (linear_predictions, knn_predictions):
        predicted = out_of_fold(x, y, patients, cohort, labels, predict)
        assert np.isfinite(predicted).all()
        assert score(predicted, y, labels) > (0.95 if labels.classes else 0.85)
        blind = out_of_fold(random.normal(size=x.shape), y, patients, cohort, labels, predict)
        assert score(blind, y, labels) < 0.75


def test_a_class_that_training_lacks_has_no_probability() -> None:
    random = np.random.default_rng(3)
    x, y = random.normal(size=(10, 3)), np.array([0.0, 2.0] * 5)
    for predict in (linear_predictions, knn_predictions):
        predicted = predict(x, y, x, np.array([str(k) for k in range(10)]), CLASSES)
        np.testing.assert_array_equal(predicted[:, 1], 0)
        np.testing.assert_allclose(predicted.sum(1), 1)
    only = linear_predictions(x, y * 0, x, np.array(list("abcdefghij")), CLASSES)
    np.testing.assert_array_equal(only[:, 0], 1)

import inspect
import json
import math

import numpy as np
import pytest

from fmct.errors import ArtefactError, DataError
from fmct.metrics.operating_point import OperatingPoint, choose

SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
LABELS = np.array([0, 0, 0, 1, 0, 0, 1, 1, 1, 1])


def by_hand(rule: str, level: float) -> tuple[float, float, float]:
    """Return (threshold, sensitivity, specificity) of the best of all observed thresholds."""
    found = []
    for t in SCORES:
        d = t <= SCORES
        se, sp = (d & (LABELS == 1)).sum() / 5, (~d & (LABELS == 0)).sum() / 5
        if rule == "sensitivity" and se >= level:
            found.append((sp, t, se, sp))
        if rule == "specificity" and sp >= level:
            found.append((se, t, se, sp))
        if rule == "youden":
            found.append((se + sp, t, se, sp))
    return max(found)[1:]


@pytest.mark.parametrize(
    ("rule", "level"), [("sensitivity", 0.95), ("sensitivity", 0.8), ("specificity", 0.8), ("youden", 1)]
)
def test_rules_choose_what_trying_every_threshold_chooses(rule: str, level: float) -> None:
    point = choose(SCORES, LABELS, rule, level)
    t, se, sp = by_hand(rule, level)
    assert point.threshold == t
    assert (point.true_positives / point.positives, point.true_negatives / point.negatives) == (se, sp)


def test_m9_the_picker_takes_validation_only() -> None:
    names = list(inspect.signature(choose).parameters)
    assert names == ["validation_scores", "validation_labels", "rule", "level"]


def test_n6_equality_counts_as_positive() -> None:
    point = choose(SCORES, LABELS, "sensitivity", 1.0)
    assert point.threshold == 0.4
    assert point.decide(np.array([0.4, np.nextafter(0.4, 0)])).tolist() == [True, False]


def test_specificity_that_only_silence_reaches() -> None:
    point = choose(np.array([0.2, 0.9, 0.5]), np.array([1, 0, 0]), "specificity", 1.0)
    assert point.true_positives == 0
    assert not point.decide(np.array([0.9])).any()
    assert math.isfinite(json.loads(json.dumps(point.to_dict()))["threshold"])


def test_it_is_frozen_and_travels_as_json() -> None:
    for rule in ("sensitivity", "youden"):
        point = choose(SCORES, LABELS, rule)
        back = OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict())))
        assert str(back) == str(point)
        assert back.threshold == point.threshold
    with pytest.raises(AttributeError):
        point.threshold = 0.1  # type: ignore[misc]
    with pytest.raises(ArtefactError, match="operating point"):
        OperatingPoint.from_dict({"threshold": 0.5})


def test_one_class_and_unusable_values_are_explained() -> None:
    with pytest.raises(DataError, match="10 positive and 0 negative"):
        choose(SCORES, np.ones(10))
    with pytest.raises(DataError, match="one finite score"):
        choose(np.r_[SCORES[:-1], np.nan], LABELS)
    with pytest.raises(DataError, match="expected a rule"):
        choose(SCORES, LABELS, "best")

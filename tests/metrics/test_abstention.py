"""Where a frozen threshold lies, and the band around it in which nothing is claimed."""

import numpy as np
import pytest

from fmct.errors import ArtefactError
from fmct.metrics.operating_point import band_around, choose, midway
from fmct.publish.decision import Decision

SCORES = np.array([0.01, 0.05, 0.2, 0.4, 0.9, 0.95])
LABELS = np.array([0, 0, 0, 1, 1, 1])


def test_midway_changes_no_validation_decision() -> None:
    point = choose(SCORES, LABELS, "youden")
    assert point.threshold == 0.4
    between = midway(point, SCORES)
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    assert between.threshold == pytest.approx(1 / (1 + np.exp(-(logit(0.2) + logit(0.4)) / 2)))
    assert np.array_equal(between.decide(SCORES), point.decide(SCORES))
    assert (between.true_positives, between.true_negatives) == (3, 3)


def test_midway_leaves_the_lowest_threshold() -> None:
    point = choose(np.array([0.3, 0.6]), np.array([1, 0]), "sensitivity", 1.0)
    assert midway(point, np.array([0.3, 0.6])) == point


def test_a_band_holds_its_threshold() -> None:
    assert band_around([0.2, 0.8], 0.5) == (0.2, 0.8)
    assert band_around([0.2, 0.8], 0.9) == (0.2, 0.9)
    assert band_around([0.2, 0.8], 0.1) == (0.1, 0.8)
    with pytest.raises(ArtefactError, match="does not hold its threshold"):
        Decision(thresholds={"contrast": 0.9}, abstain={"contrast": (0.2, 0.8)})
    with pytest.raises(ArtefactError, match="temperatures are positive"):
        Decision(temperature={"contrast": 0.0})


def test_calls_never_contradict_the_threshold() -> None:
    decision = Decision(thresholds={"contrast": 0.5}, abstain={"contrast": (0.2, 0.8)}, temperature={"contrast": 2.0})
    found = {p: decision.call("contrast", p) for p in (0.0, 0.19, 0.2, 0.5, 0.79, 0.8, 1.0, float("nan"))}
    assert list(found.values()) == ["no", "no", "uncertain", "uncertain", "uncertain", "yes", "yes", "uncertain"]
    assert Decision(thresholds={"contrast": 0.5}).call("contrast", 0.5) == "yes"
    assert decision.call("phase_native", 0.9) == ""
    assert Decision.from_dict(decision.to_dict(), "here") == decision
    assert "abstain" not in Decision().to_dict()

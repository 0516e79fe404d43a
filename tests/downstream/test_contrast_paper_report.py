"""The published decision: strictly above ½, wherever it is made; or a threshold chosen on validation patients."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fmct.data.slice_batches import SliceScans
from fmct.downstream.contrast_paper_config import ThresholdConfig, thresholds_of
from fmct.downstream.contrast_paper_report import Scored, freeze
from fmct.inference.decision import Evidence, decide
from fmct.tasks.contrast_paper import scan_logit, scan_probability

INPUTS: Any = SimpleNamespace(cohort=SimpleNamespace(targets=["contrast"]))


def validated(probability: list[float], labels: list[int]) -> Scored:
    names = [f"p{n}/s{n}" for n in range(len(labels))]
    scans = SliceScans([], [], np.array(labels, dtype=float), names)
    return Scored("validation", scans, [np.array([p]) for p in probability], np.array(probability))


@pytest.mark.parametrize("value", [0.5, 0.3])
def test_a_probability_at_the_fixed_threshold_is_no_contrast(value: float) -> None:
    """Reference A.12 item 1: ½ exactly is no contrast, the next number above it is."""
    config: Any = SimpleNamespace(threshold=ThresholdConfig(value=value))
    decision = freeze(config, INPUTS, validated([0.2, 0.9], [0, 1]))
    slices = np.full(8, value)
    assert scan_probability(slices, "mean") == value
    threshold = decision.thresholds["contrast"]
    assert not value >= threshold
    assert np.nextafter(value, 1) >= threshold
    calls = [decide(decision, "contrast", Evidence(scan_logit(p))).decision for p in (value - 1e-6, value + 1e-6)]
    assert calls == [False, True]


def test_half_of_the_slices_is_half() -> None:
    """Exactly ½ through logit and back, as `fmct predict` takes it: no contrast."""
    config: Any = SimpleNamespace(threshold=ThresholdConfig())
    decision = freeze(config, INPUTS, validated([0.2, 0.9], [0, 1]))
    half = scan_probability(np.array([0.5, 0.49, 0.7, 0.1]), "fraction")
    assert half == 0.5
    assert decide(decision, "contrast", Evidence(scan_logit(half))).decision is False


def test_a_threshold_is_chosen_on_validation_patients_and_one_class_gives_none() -> None:
    config: Any = SimpleNamespace(threshold=ThresholdConfig(rule="youden"))
    chosen = freeze(config, INPUTS, validated([0.1, 0.35, 0.4, 0.8], [0, 0, 1, 1])).thresholds["contrast"]
    assert 0.35 < chosen <= 0.4
    alone = freeze(config, INPUTS, validated([0.1, 0.9], [1, 1]))
    assert alone.thresholds == {}
    assert alone.validation["reason"]
    assert thresholds_of([0.1, 0.7, 0.3]) > 0.7

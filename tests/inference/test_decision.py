"""Rules: N6 (monotone, equality is positive), N7 (no decision without a threshold), the fusion on validation only."""

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fmct.errors import ArtefactError, DataError
from fmct.inference.components import components, counted_volume
from fmct.inference.decision import Evidence, decide, fit_fusion, rule_score
from fmct.publish.decision import Decision, Fusion, read_decision, write_decision


def test_n6_a_score_equal_to_its_threshold_is_positive() -> None:
    at = Decision("cls", {"pe": 1 / (1 + math.exp(-0.3))})
    assert decide(at, "pe", Evidence(0.3)).decision is True
    assert decide(at, "pe", Evidence(math.nextafter(0.3, -1) - 1e-15)).decision is False
    volume = Decision("volume", {"pe": 125.0})
    assert decide(volume, "pe", Evidence(volume_mm3=125.0, max_probability=0.9)).decision is True
    assert decide(volume, "pe", Evidence(volume_mm3=124.999, max_probability=0.9)).decision is False


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_n6_raising_a_crop_logit_never_turns_positive_into_negative(pool: str) -> None:
    rng = np.random.default_rng(0)
    decision = Decision("cls", {"pe": 0.5})
    for _ in range(200):
        logits = rng.normal(size=6)
        before = decide(decision, "pe", Evidence(float(getattr(np, pool)(logits)))).decision
        logits[rng.integers(6)] += rng.exponential()
        after = decide(decision, "pe", Evidence(float(getattr(np, pool)(logits)))).decision
        assert not (before and not after)


def test_n6_raising_voxel_logits_never_shrinks_a_component_below_the_threshold() -> None:
    """Rule volume with component_probability at most mask_probability: no rise of any voxel loses counted volume."""
    rng = np.random.default_rng(1)
    decision = Decision("volume", {"pe": 6.0}, component_probability=0.5, min_volume_mm3=2.0)
    for _ in range(100):
        logits = rng.normal(size=(4, 5, 6)) - 0.5
        before = _volume(logits, decision)
        logits += (rng.random(logits.shape) < 0.1) * rng.exponential(size=logits.shape)
        after = _volume(logits, decision)
        assert after >= before
        assert not (decide(decision, "pe", before_of(before)).decision and not _positive(decision, after))


def _volume(logits: np.ndarray, decision: Decision) -> float:
    found = components(1 / (1 + np.exp(-logits)), np.eye(4), threshold=decision.mask_probability)
    return counted_volume(found, probability=decision.component_probability, min_volume_mm3=decision.min_volume_mm3)


def before_of(volume: float) -> Evidence:
    return Evidence(volume_mm3=volume, max_probability=0.9)


def _positive(decision: Decision, volume: float) -> bool | None:
    return decide(decision, "pe", before_of(volume)).decision


def test_n6_a_volume_rule_that_could_lose_a_component_by_growing_is_refused() -> None:
    """A component's mean may fall when it grows; with a limit above the mask's the rule would not be monotone."""
    with pytest.raises(ArtefactError, match=r"component_probability 0\.7 is above mask_probability 0\.5"):
        Decision("volume", {"pe": 6.0}, component_probability=0.7)


def test_n7_without_a_threshold_there_is_a_probability_and_no_decision() -> None:
    for decision in (None, Decision("cls", {"other": 0.2}), Decision("volume", {})):
        verdict = decide(decision, "pe", Evidence(1.5, 20.0, 0.7))
        assert verdict.decision is None
        assert math.isnan(verdict.threshold)
        assert verdict.probability == pytest.approx(1 / (1 + math.exp(-1.5)))


def test_the_probability_of_a_network_that_only_segments_is_its_largest_voxel() -> None:
    assert Evidence(volume_mm3=3.0, max_probability=0.7).probability == 0.7
    assert Evidence(-800.0).probability == 0.0


def test_a_rule_that_the_model_cannot_serve_is_refused() -> None:
    with pytest.raises(DataError, match="rule volume needs a mask"):
        rule_score(Decision("volume", {"pe": 1.0}), "pe", Evidence(0.3))
    with pytest.raises(DataError, match="rule cls needs a probability"):
        rule_score(Decision("cls", {"pe": 0.5}), "pe", Evidence())
    fusion = Decision("fusion", {"pe": 0.5}, fusion={"pe": Fusion((1.0, 1.0, 1.0), 0.0)})
    with pytest.raises(DataError, match="rule fusion needs a logit"):
        rule_score(fusion, "pe", Evidence(0.3))
    with pytest.raises(ArtefactError, match="no fitted regression for pe"):
        Decision("fusion", {"pe": 0.5})


def test_fusion_is_scikit_learns_regression_on_standardised_features() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 60)
    patients = [
        Evidence(float(rng.normal() + label), float(rng.exponential(200 * (1 + label))), float(rng.random()))
        for label in labels
    ]
    fusion = fit_fusion(patients, labels.tolist())
    features = np.array([[p.logit, math.log1p(p.volume_mm3), p.max_probability] for p in patients])
    standard = (features - features.mean(0)) / features.std(0)
    wanted = LogisticRegression(max_iter=1000).fit(standard, labels).predict_proba(standard)[:, 1]
    decision = Decision("fusion", {"pe": 0.4}, fusion={"pe": fusion})
    found = [decide(decision, "pe", patient) for patient in patients]
    assert [v.probability for v in found] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert [v.decision for v in found] == (wanted >= 0.4).tolist()


def test_fusion_needs_both_classes_and_one_label_a_patient() -> None:
    patients = [Evidence(0.1, 2.0, 0.3), Evidence(0.5, 1.0, 0.2)]
    with pytest.raises(DataError, match="positive and negative validation patients"):
        fit_fusion(patients, [1, 1])
    with pytest.raises(DataError, match="one label 0 or 1 each"):
        fit_fusion(patients, [1, 0, 1])
    same = fit_fusion([Evidence(0.1, 2.0, 0.3), Evidence(0.5, 2.0, 0.3)], [0, 1])
    assert same.coefficients[1:] == (0.0, 0.0)


def test_a_decision_survives_the_run_folder(tmp_path: Path) -> None:
    assert read_decision(tmp_path) is None
    decision = Decision(
        "fusion", {"pe": 0.4}, fusion={"pe": Fusion((1.0, -2.0, 0.5), 0.25)}, validation={"patients": 12}
    )
    write_decision(tmp_path, decision)
    assert read_decision(tmp_path) == decision
    with pytest.raises(ArtefactError, match="expected a rule of cls, volume, fusion"):
        Decision("artery", {})
    with pytest.raises(ArtefactError, match="finite numbers"):
        Decision("cls", {"pe": math.nan})
    with pytest.raises(ArtefactError, match="not a usable decision"):
        Decision.from_dict({"rule": "cls", "thresholds": {"pe": 0.5}, "surprise": 1}, "here")

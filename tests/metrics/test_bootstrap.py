import numpy as np
import pytest
from scipy import stats

from fmct.metrics.bootstrap import stratified_interval
from fmct.metrics.weighted_scores import auroc_of, mean_of

RANDOM = np.random.default_rng(2)
LABELS = np.repeat([0, 1], [40, 20])
SCORES = RANDOM.normal(size=60) + LABELS
NAMES = [f"p{k:02d}" for k in range(60)]


def test_m8_both_classes_stay_and_patients_are_drawn_not_crops() -> None:
    seen = []

    def watched(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return auroc_of(np.repeat(SCORES, 3), np.repeat(LABELS, 3))(weights)

    interval = stratified_interval(
        watched, np.repeat(NAMES, 3), np.repeat(LABELS, 3), method="percentile", resamples=300
    )
    for weights in seen:
        crops = weights.reshape(len(weights), 60, 3)
        assert (crops == crops[:, :, :1]).all()  # a patient comes with all its crops, or not at all
        assert (crops[:, 40:, 0].sum(axis=1) == 20).all()
        assert (crops[:, :40, 0].sum(axis=1) == 40).all()
    plain = stratified_interval(auroc_of(SCORES, LABELS), NAMES, LABELS, method="percentile", resamples=300)
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high))
    assert interval.n == 60


def test_m8_the_same_seed_gives_the_same_interval() -> None:
    first, again, other = (
        stratified_interval(auroc_of(SCORES, LABELS), NAMES, LABELS, seed=seed, resamples=300) for seed in (3, 3, 4)
    )
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_bca_is_scipys_for_one_stratum() -> None:
    values = RANDOM.exponential(size=18)
    found = stratified_interval(mean_of(values), [f"{k:02d}" for k in range(18)], np.zeros(18), resamples=500, seed=1)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="BCa", rng=np.random.default_rng(1), batch=100
    ).confidence_interval
    assert found.method == "bca"
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.02)


def test_width_does_not_shrink_with_the_number_of_resamples() -> None:
    widths = []
    for resamples in (300, 3000):
        found = stratified_interval(auroc_of(SCORES, LABELS), NAMES, LABELS, resamples=resamples)
        assert found.high is not None
        assert found.low is not None
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.2)


def test_what_is_undefined_says_why() -> None:
    few = stratified_interval(mean_of(np.arange(5.0)), list("abcde"), np.zeros(5))
    assert (few.estimate, few.low) == (2.0, None)
    one = stratified_interval(auroc_of(SCORES, LABELS * 0), NAMES, LABELS * 0)
    assert one.estimate is None
    assert "one class" in one.note
    lonely = stratified_interval(mean_of(SCORES), NAMES, np.arange(60) == 0)
    assert "one patient in a class" in lonely.note
    level = stratified_interval(mean_of(np.ones(60)), NAMES, LABELS, resamples=100)
    assert (level.estimate, level.low) == (1.0, None)
    assert "every resample" in level.note
    assert stratified_interval(mean_of(np.zeros(0)), [], []).note == "no patient"

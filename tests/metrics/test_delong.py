import math

import numpy as np
import pytest
from scipy import stats

from fmct.metrics.delong import auroc, auroc_interval, mean_auroc, paired_delong
from tests.metrics.references_metrics import auroc_by_pairs, delong_covariance, obuchowski_variance


def cohort(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels and two models' scores, correlated and with ties."""
    random = np.random.default_rng(seed)
    y = (random.random(n) < 0.4).astype(int)
    shared = random.normal(size=n)
    a, b = (np.round(shared + gain * y + 0.5 * random.normal(size=n), 1) for gain in (1.2, 0.6))
    return y, a, b


def test_m3_delong_of_the_known_vector() -> None:
    found = auroc(np.array([0.9, 0.8, 0.4, 0.7, 0.3]), np.array([1, 1, 1, 0, 0]))
    assert found.value == pytest.approx(5 / 6)
    assert found.variance == pytest.approx(0.055556, abs=1e-6)
    assert math.sqrt(found.variance) == pytest.approx(0.235702, abs=1e-6)
    assert auroc_interval(found).low is None  # five patients: the value alone
    assert auroc_interval(found).estimate == pytest.approx(5 / 6)


def test_m3_a_model_against_itself() -> None:
    y, a, _ = cohort(0)
    result = paired_delong(auroc(a, y), auroc(a, y))
    assert (result.interval.estimate, result.p) == (0.0, 1.0)


def test_m4_ties_and_one_class() -> None:
    assert auroc(np.full(8, 0.3), np.array([1, 0] * 4)).value == 0.5
    alone = auroc(np.arange(7.0), np.ones(7))
    assert math.isnan(alone.value)
    assert str(auroc_interval(alone)) == "n/a (undefined: 7 positive patients and 0 negative patients)"
    single = auroc(np.arange(8.0), np.array([0] * 7 + [1]))
    assert single.value == 1
    assert "one patient" in auroc_interval(single).note


@pytest.mark.parametrize("seed", range(3))
def test_value_variance_and_covariance_are_delongs(seed: int) -> None:
    y, a, b = cohort(seed)
    first, second = auroc(a, y), auroc(b, y)
    assert first.value == pytest.approx(auroc_by_pairs(a.tolist(), y.tolist()))
    assert first.variance == pytest.approx(delong_covariance(a, a, y))
    gain = paired_delong(first, second)
    variance = delong_covariance(a, a, y) + delong_covariance(b, b, y) - 2 * delong_covariance(a, b, y)
    z = (first.value - second.value) / math.sqrt(variance)
    assert gain.p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert gain.interval.low == pytest.approx(first.value - second.value - 1.959964 * math.sqrt(variance))


def test_interval_stays_inside_zero_and_one() -> None:
    scores, y = np.r_[np.arange(20.0), 19.5], np.array([0] * 18 + [1, 1, 0])
    interval = auroc_interval(auroc(scores, y))
    assert interval.low is not None
    assert interval.high is not None
    assert 0 < interval.low < interval.estimate < interval.high < 1  # type: ignore[operator]
    apart = auroc_interval(auroc(np.arange(10.0), np.array([0] * 5 + [1] * 5)))
    assert (apart.estimate, apart.low) == (1.0, None)
    assert "variance is 0 when the classes do not overlap" in apart.note


def test_series_of_a_patient_are_summed_first() -> None:
    y, a, _ = cohort(5)
    clusters = [f"p{k // 3}" for k in range(len(y))]
    y = np.array([y[3 * (k // 3)] for k in range(len(y))])  # a patient's series share the label
    found = auroc(a, y, clusters)
    assert found.variance == pytest.approx(obuchowski_variance(a.tolist(), y.tolist(), clusters))
    doubled = auroc(np.r_[a, a], np.r_[y, y], [*map(str, range(40)), *map(str, range(40))])
    assert doubled.variance == pytest.approx(auroc(a, y).variance)  # copies of a series bring no information
    assert auroc(np.r_[a, a], np.r_[y, y]).variance < 0.6 * doubled.variance


def test_mean_over_findings_counts_a_patient_once() -> None:
    y, a, b = cohort(6)
    names = list(map(str, range(len(y))))
    same = mean_auroc([auroc(a, y, names)] * 4)
    assert same.variance == pytest.approx(auroc(a, y, names).variance)  # four copies are not four findings
    mean = mean_auroc([auroc(a, y, names), auroc(b, y, names)])
    expected = (delong_covariance(a, a, y) + delong_covariance(b, b, y) + 2 * delong_covariance(a, b, y)) / 4
    assert mean.variance == pytest.approx(expected)
    undefined = mean_auroc([auroc(a, y, names), auroc(a, np.ones(40), names)])
    assert "undefined for 1 of 2" in auroc_interval(undefined).note


def test_different_patients_are_refused() -> None:
    y, a, _ = cohort(1)
    with pytest.raises(ValueError, match="not the same"):
        paired_delong(auroc(a, y), auroc(a[:30], y[:30]))


def test_tied_scores_have_no_interval_and_are_not_called_apart() -> None:
    tied = auroc_interval(auroc(np.full(10, 0.4), np.array([0] * 5 + [1] * 5)))
    assert (tied.estimate, tied.low) == (0.5, None)
    assert "no patient stands out" in tied.note

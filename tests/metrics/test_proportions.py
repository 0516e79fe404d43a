import math

import numpy as np
import pytest
from scipy import stats

from fmct.metrics.proportions import mcnemar, patient_share, predictive_values, proportion_interval


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (123, 128, 0.9118, 0.9832),
        (521, 551, 0.9233, 0.9616),
        (10, 10, 0.7225, 1),
        (0, 10, 0, 0.2775),
        (62, 65, 0.8729, 0.9842),
    ],
)
def test_m1_wilson(k: int, n: int, low: float, high: float) -> None:
    interval = proportion_interval(k, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert interval.estimate == k / n


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(123, 128, 0.9112, 0.9872), (10, 10, 0.6915, 1), (62, 65, 0.8710, 0.9904)]
)
def test_m2_clopper_pearson(k: int, n: int, low: float, high: float) -> None:
    interval = proportion_interval(k, n, method="clopper-pearson")
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_clopper_pearson_ends_where_nothing_and_everything_is_found() -> None:
    assert proportion_interval(0, 9, method="clopper-pearson").low == 0
    assert proportion_interval(9, 9, method="clopper-pearson").high == 1


def test_no_case_is_not_available_with_a_reason() -> None:
    for method in ("wilson", "clopper-pearson"):
        assert str(proportion_interval(0, 0, method=method)) == "n/a (no case)"
    with pytest.raises(ValueError, match="wald"):
        proportion_interval(1, 2, method="wald")


def test_five_patients_get_their_share_and_no_interval() -> None:
    hits, cases = np.array([1, 1, 1, 0, 1, 1], dtype=bool), np.array([1, 1, 1, 1, 1, 0], dtype=bool)
    few = patient_share(hits, cases)
    assert (few.estimate, few.low, few.n) == (0.8, None, 5)
    assert "below 6" in few.note
    assert patient_share(hits, np.ones(6, dtype=bool)).low is not None


def test_m7_predictive_values_at_stated_prevalences() -> None:
    for prevalence, ppv in ((0.001, 0.193), (0.01, 0.707), (0.2, 0.984)):
        assert predictive_values(0.954, 0.996, prevalence)[0] == pytest.approx(ppv, abs=5e-4)
    assert predictive_values(0.9, 0.8, 0.5)[1] == pytest.approx(0.8 / 0.9)
    assert math.isnan(predictive_values(0.0, 1.0, 0.1)[0])


def test_mcnemar_is_the_sign_test_on_disagreements() -> None:
    first = np.array([1] * 8 + [0] * 4 + [1] * 20, dtype=bool)
    second = np.array([0] * 8 + [1] * 2 + [0] * 2 + [1] * 20, dtype=bool)
    found = mcnemar(first, second)
    assert (found.first_only, found.second_only) == (8, 2)
    assert found.p == pytest.approx(2 * stats.binom.cdf(2, 10, 0.5))
    assert mcnemar(first, first).p == 1.0
    with pytest.raises(ValueError, match="not pairs"):
        mcnemar(first, second[:5])

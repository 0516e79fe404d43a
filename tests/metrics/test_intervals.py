import numpy as np
import pytest
from scipy import stats

from fmct.metrics.intervals import bootstrap_interval, paired_t_interval, t_interval, wilson_interval
from tests.probes.references_probe import clustered_percentiles


def test_t_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 12)
    interval = t_interval(values)
    low, high = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((values.mean(), low, high))
    assert interval.n == 12


def test_t_interval_of_a_known_vector() -> None:
    interval = t_interval([1, 2, 3, 4, 5, 6])
    # mean 3.5, s = 1.8708, t(5, .975) = 2.5706
    assert (interval.low, interval.high) == pytest.approx((3.5 - 1.9633, 3.5 + 1.9633), abs=1e-3)


def test_paired_interval_sees_the_difference_only() -> None:
    patients = np.random.default_rng(1).normal(0.7, 0.3, 20)
    gain = np.random.default_rng(2).normal(0.05, 0.02, 20)
    paired = paired_t_interval(patients + gain, patients)
    assert paired.low is not None
    assert paired.low > 0
    assert (paired.low, paired.high) == pytest.approx((t_interval(gain).low, t_interval(gain).high))
    with pytest.raises(ValueError, match="not pairs"):
        paired_t_interval([1.0, 2.0], [1.0])


@pytest.mark.parametrize("count", [1, 5])
def test_few_patients_get_values_and_no_interval(count: int) -> None:
    interval = t_interval([0.5] * count)
    assert interval.estimate == 0.5
    assert interval.low is None
    assert f"{count} patient" in str(interval)
    boot = bootstrap_interval(lambda rows: float(len(rows)), [str(k) for k in range(count)])
    assert (boot.estimate, boot.low) == (count, None)


def test_nothing_is_not_available_with_a_reason() -> None:
    assert str(t_interval([])) == "n/a (no patient has a value)"
    assert str(wilson_interval(0, 0)) == "n/a (no case)"
    assert "one class" in str(bootstrap_interval(lambda rows: float("nan"), ["a"] * 9))
    with pytest.raises(ValueError, match="not finite"):
        t_interval([0.1, float("nan")])


def test_wilson_of_known_vectors() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for successes, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        interval = wilson_interval(successes, total)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_bootstrap_redraws_whole_patients() -> None:
    random = np.random.default_rng(3)
    patients = [f"p{k % 10}" for k in range(60)]
    values = np.repeat(random.normal(size=10), 6).reshape(10, 6).T.reshape(-1) + random.normal(scale=0.1, size=60)
    interval = bootstrap_interval(lambda rows: float(values[rows].mean()), patients, method="percentile")
    low, high = clustered_percentiles(lambda rows: float(values[rows].mean()), patients, resamples=3000, seed=1)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.08)
    naive = bootstrap_interval(lambda rows: float(values[rows].mean()), [str(k) for k in range(60)])
    assert interval.high is not None
    assert interval.low is not None
    assert naive.high is not None
    assert naive.low is not None
    assert interval.high - interval.low > 1.7 * (naive.high - naive.low)


def test_bca_is_scipys_where_each_patient_has_one_row() -> None:
    values = np.random.default_rng(4).exponential(size=15)
    interval = bootstrap_interval(lambda rows: float(values[rows].mean()), [f"p{k:02d}" for k in range(15)], seed=7)
    expected = stats.bootstrap(
        (values,), np.mean, vectorized=False, n_resamples=1000, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    assert interval.method == "bca"
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_a_statistic_undefined_in_many_resamples_has_no_interval() -> None:
    truth = np.array([1] + [0] * 9)
    interval = bootstrap_interval(
        lambda rows: float("nan") if not truth[rows].any() else float(truth[rows].mean()), [str(k) for k in range(10)]
    )
    assert interval.estimate == pytest.approx(0.1)
    assert interval.low is None
    assert "undefined in 3" in interval.note  # (1 − 1/10)^10 = 35 %


def test_a_statistic_undefined_in_few_resamples_keeps_percentiles() -> None:
    truth = np.array([1] * 5 + [0] * 7)
    statistic = lambda rows: float("nan") if len(set(truth[rows])) < 2 else float(truth[rows].mean())  # noqa: E731
    interval = bootstrap_interval(statistic, [str(k) for k in range(12)])
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < 5 / 12 < interval.high

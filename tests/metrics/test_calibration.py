import numpy as np
import pytest
from scipy import optimize, special

from fmct.errors import DataError
from fmct.metrics.calibration import (
    apply_temperature,
    calibration_line,
    expected_calibration_error,
    fit_temperature,
    logits,
    reliability,
    shift_prior,
)
from tests.metrics.references_metrics import equal_mass_error

RANDOM = np.random.default_rng(4)
TRUE = RANDOM.normal(-0.5, 1.5, 3000)
LABELS = (RANDOM.random(3000) < special.expit(TRUE)).astype(int)


def test_error_of_equal_mass_bins() -> None:
    p, y = RANDOM.random(100), (RANDOM.random(100) < 0.5).astype(int)
    assert expected_calibration_error(p, y, bins=10) == pytest.approx(equal_mass_error(p.tolist(), y.tolist(), 10))
    assert expected_calibration_error(p[:3], y[:3]) == pytest.approx(float(np.abs(p[:3] - y[:3]).mean()))


def test_equal_probabilities_share_a_bin() -> None:
    p = np.r_[np.full(50, 0.2), np.full(50, 0.8)]
    y = np.r_[np.ones(10), np.zeros(40), np.ones(40), np.zeros(10)]
    bins = reliability(p, y)
    assert [(b.probability, b.observed.estimate, b.observed.n) for b in bins] == [
        (pytest.approx(0.2), 0.2, 50),
        (pytest.approx(0.8), 0.8, 50),
    ]
    assert expected_calibration_error(p, y) == pytest.approx(0)


def test_line_recovers_what_was_distorted() -> None:
    line = calibration_line(special.expit(2 * TRUE), LABELS)  # twice too sure
    assert line.slope.estimate == pytest.approx(0.5, abs=0.05)
    assert line.slope.low is not None
    assert line.slope.high is not None
    assert line.slope.low < 0.5 < line.slope.high
    shifted = calibration_line(special.expit(TRUE - 1), LABELS)
    assert shifted.intercept.estimate == pytest.approx(1, abs=0.15)
    assert shifted.slope.estimate == pytest.approx(1, abs=0.1)


def test_slope_and_its_error_are_the_maximum_likelihood() -> None:
    x, y = TRUE[:80], LABELS[:80]
    loss = lambda b: float(np.logaddexp(0, np.where(y == 1, -1, 1) * (b[0] + b[1] * x)).sum())  # noqa: E731
    found = optimize.minimize(loss, [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10})
    slope = calibration_line(special.expit(x), y).slope
    assert slope.estimate == pytest.approx(found.x[1], abs=1e-4)
    assert slope.high is not None
    half, step = (slope.high - found.x[1]) / 1.959964, 1e-3
    hessian = np.array(
        [
            [
                (
                    loss(found.x + step * (a + b)) - loss(found.x + step * (a - b))
                    - loss(found.x - step * (a - b)) + loss(found.x - step * (a + b))
                ) / (4 * step**2)
                for b in np.eye(2)
            ]
            for a in np.eye(2)
        ]
    )  # fmt: skip
    assert half == pytest.approx(np.sqrt(np.linalg.inv(hessian)[1, 1]), rel=1e-2)


def test_separated_classes_and_one_class_have_no_slope() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    assert "separated" in str(calibration_line(p, np.array([0, 0, 0, 1, 1, 1])).slope)
    assert "one class" in str(calibration_line(p, np.ones(6)).intercept)
    assert "one probability" in str(calibration_line(np.full(6, 0.3), np.array([0, 1] * 3)).slope)


def test_temperature_is_found_and_keeps_ranks() -> None:
    p = special.expit(3 * TRUE)
    temperature = fit_temperature(p, LABELS)
    assert temperature == pytest.approx(3, rel=0.1)
    cooled = apply_temperature(p, temperature)
    assert expected_calibration_error(cooled, LABELS) < 0.5 * expected_calibration_error(p, LABELS)
    assert (np.diff(cooled[np.argsort(p)]) >= 0).all()
    with pytest.raises(DataError, match="one class"):
        fit_temperature(p, np.zeros(3000))


def test_prior_shift_moves_the_logit_by_the_odds() -> None:
    p = np.array([0.2, 0.5, 0.9])
    shifted = shift_prior(p, trained=0.5, local=0.01)
    assert logits(shifted) - logits(p) == pytest.approx(np.full(3, np.log(0.01 / 0.99)))
    assert shift_prior(p, trained=0.3, local=0.3) == pytest.approx(p)


def test_probabilities_outside_zero_and_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        reliability(np.array([1.2]), np.array([1]))

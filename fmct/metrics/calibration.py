"""Whether probabilities mean what they say: Brier's score, reliability, slope and intercept; and two corrections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats
from sklearn.linear_model import LogisticRegression

from fmct.errors import DataError
from fmct.metrics.intervals import SMALLEST_SAMPLE, Interval, too_few, wilson_interval

BINS = 15
CLIP = 1e-6  # a probability of exactly 0 or 1 has no logit
_Z = 1.959963984540054


@dataclass(frozen=True)
class ReliabilityBin:
    """Patients of neighbouring probabilities: their mean probability, and how many of them are positive."""

    probability: float
    observed: Interval


def logits(probabilities: np.ndarray) -> np.ndarray:
    """Return log(p / (1 − p)), p clipped to CLIP..1 − CLIP."""
    return special.logit(np.clip(np.asarray(probabilities, dtype=np.float64), CLIP, 1 - CLIP))


def reliability(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = BINS) -> list[ReliabilityBin]:
    """Return at most `bins` bins of equal numbers of patients, from low to high; equal probabilities share a bin."""
    p, y = _checked(probabilities, labels)
    number = _bin_numbers(p, bins)
    return [
        ReliabilityBin(
            float(p[number == b].mean()), wilson_interval(int(y[number == b].sum()), int((number == b).sum()))
        )
        for b in np.unique(number)
    ]


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = BINS) -> float:
    """Return Σ share of patients · |mean probability − share positive| over equal-mass bins; NaN without patients."""
    p, _ = _checked(probabilities, labels)
    if not len(p):
        return math.nan
    found = reliability(probabilities, labels, bins=bins)
    return float(sum(b.observed.n * abs(b.probability - (b.observed.estimate or 0.0)) for b in found) / len(p))


@dataclass(frozen=True)
class CalibrationLine:
    """logit P(positive) = intercept + slope · logit(p), Cox (1958): 0 and 1 are perfect.

    intercept: with the slope held at 1 (calibration in the large). slope: below 1 is overconfident. Wald intervals.
    """

    slope: Interval
    intercept: Interval


def calibration_line(probabilities: np.ndarray, labels: np.ndarray) -> CalibrationLine:
    """Return slope and intercept; n/a for one class, and for the slope where the classes are separated."""
    p, y = _checked(probabilities, labels)
    n, x = len(p), logits(p)
    if y.min(initial=1) == y.max(initial=0):
        nothing = Interval(None, None, None, n, "wald", note="undefined: one class only")
        return CalibrationLine(nothing, nothing)
    # Sum of residuals falls in a from +positives to −negatives, so a root exists.
    shift = float(optimize.brentq(lambda a: float((y - special.expit(x + a)).sum()), -60.0, 60.0))  # type: ignore[arg-type]
    fitted = special.expit(x + shift)
    intercept = _wald(shift, float((fitted * (1 - fitted)).sum()) ** -0.5, n)
    positive, negative = x[y == 1], x[y == 0]
    if np.ptp(x) == 0:
        return CalibrationLine(Interval(None, None, None, n, "wald", note="undefined: one probability only"), intercept)
    if positive.min() >= negative.max() or positive.max() <= negative.min():
        return CalibrationLine(
            Interval(None, None, None, n, "wald", note="undefined: classes are separated"), intercept
        )
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(x[:, None], y)
    q = model.predict_proba(x[:, None])[:, 1]
    design = np.stack([np.ones(n), x], axis=1)
    covariance = np.linalg.inv((design * (q * (1 - q))[:, None]).T @ design)
    return CalibrationLine(_wald(float(model.coef_[0, 0]), math.sqrt(covariance[1, 1]), n), intercept)


def fit_temperature(validation_probabilities: np.ndarray, validation_labels: np.ndarray) -> float:
    """Return T > 0 that minimises the log loss of sigmoid(logit / T) on validation patients (Guo et al. 2017).

    Searched over 0.05..20. Raises DataError for one class, on which T is undefined.
    """
    p, y = _checked(validation_probabilities, validation_labels)
    if y.min(initial=1) == y.max(initial=0):
        raise DataError("temperature: the validation patients are of one class only; scaling needs both.")
    x = logits(p)
    loss = lambda log_t: float(np.logaddexp(0, np.where(y == 1, -x, x) / math.exp(log_t)).sum())  # noqa: E731
    found = optimize.minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded")
    return math.exp(float(found.x))  # type: ignore[attr-defined]


def temperature_of(validation_probabilities: np.ndarray, validation_labels: np.ndarray) -> float:
    """Return `fit_temperature`, and 1 where it says nothing: every positive above every negative.

    The log loss of separated classes falls with T towards 0, which would make every probability 0 or 1. Raises
    DataError for one class.
    """
    p, y = _checked(validation_probabilities, validation_labels)
    if y.min(initial=1) == 0 and y.max(initial=0) == 1 and p[y == 1].min() > p[y == 0].max():
        return 1.0
    return fit_temperature(p, y)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return sigmoid(logit / T): ranks, and so AUROC, stay."""
    return special.expit(logits(probabilities) / temperature)


def shift_prior(probabilities: np.ndarray, *, trained: float, local: float) -> np.ndarray:
    """Return probabilities for a local prevalence: logit(p) + logit(local) − logit(trained)."""
    return special.expit(logits(probabilities) + special.logit(local) - special.logit(trained))


def _wald(value: float, error: float, n: int) -> Interval:
    if n < SMALLEST_SAMPLE:
        return Interval(value, None, None, n, "wald", note=too_few(n))
    return Interval(value, value - _Z * error, value + _Z * error, n, "wald")


def _bin_numbers(p: np.ndarray, bins: int) -> np.ndarray:
    """Return (n,) bin numbers by midrank, so that equal probabilities share one."""
    return np.floor((stats.rankdata(p) - 0.5) * bins / len(p)).astype(int)


def _checked(
    probabilities: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.shape != y.shape or (len(p) and not ((p >= 0) & (p <= 1)).all()) or not np.isin(y, (0, 1)).all():
        raise ValueError("calibration: expected as many probabilities in 0..1 as labels of 0 or 1.")
    return p, y

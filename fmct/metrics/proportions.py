"""Proportions over patients: sensitivity, specificity and predictive values, and McNemar's test of two models.

Clopper and Pearson (1934) is exact and conservative; Wilson (1927), the default, is closer to its level.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fmct.metrics.intervals import SMALLEST_SAMPLE, Interval, too_few, wilson_interval

METHODS = ("wilson", "clopper-pearson")


def proportion_interval(successes: int, total: int, *, method: str = "wilson", level: float = 0.95) -> Interval:
    """Return successes / total with an interval of METHODS; n/a where total is 0."""
    if method == "wilson":
        return wilson_interval(successes, total, level=level)
    if method != "clopper-pearson":
        raise ValueError(f"proportion_interval: method {method!r}; expected one of {', '.join(METHODS)}.")
    if total == 0:
        return Interval(None, None, None, 0, method, level, "no case")
    result = stats.binomtest(successes, total).proportion_ci(confidence_level=level, method="exact")
    return Interval(successes / total, float(result.low), float(result.high), total, method, level)


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Return (PPV, NPV) at a stated prevalence, by Bayes' rule; NaN where nobody would be positive, or negative."""
    hits, alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    misses, clears = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    ppv = hits / (hits + alarms) if hits + alarms > 0 else math.nan
    npv = clears / (clears + misses) if clears + misses > 0 else math.nan
    return ppv, npv


def patient_share(hits: np.ndarray, cases: np.ndarray, *, method: str = "wilson") -> Interval:
    """Return the share of (n,) bool `hits` among `cases`, one element a patient; few patients get no interval."""
    found = proportion_interval(int((hits & cases).sum()), int(cases.sum()), method=method)
    if 0 < found.n < SMALLEST_SAMPLE:
        return Interval(found.estimate, None, None, found.n, found.method, found.level, too_few(found.n))
    return found


@dataclass(frozen=True)
class McNemar:
    """Two models on the same patients. first_only, second_only: right in one alone. p: exact and two-sided."""

    first_only: int
    second_only: int
    p: float


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """Return McNemar's exact test of two (n,) bool arrays, one element a patient; p = 1 where they never disagree."""
    a, b = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"mcnemar: {a.shape} and {b.shape} values are not pairs.")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)

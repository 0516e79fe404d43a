"""Confidence intervals over patients. A patient, never a token or a series, is the unit that is drawn again.

Fewer than SMALLEST_SAMPLE patients get their values and no interval; what cannot be computed is n/a with a reason.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

SMALLEST_SAMPLE = 6
RESAMPLES = 1000
_MOST_UNDEFINED = 0.05  # a percentile interval over the rest would no longer be one over patients


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; a bound or the estimate is None where it is undefined, and `note` says why.

    n: independent units (patients). level: coverage, such as .95. method: `t`, `wilson`, `bca`, `percentile`.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    level: float = 0.95
    note: str = ""

    def __str__(self) -> str:
        """Return such as `0.812 [0.760, 0.864], n = 12`, or n/a and the reason."""
        if self.estimate is None:
            return f"n/a ({self.note})"
        if self.low is None or self.high is None:
            return f"{self.estimate:.3f}, n = {self.n} ({self.note})"
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; None where undefined."""
        return dict(vars(self))


def t_interval(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> Interval:
    """Return the mean of one finite value per patient with Student's t interval."""
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return Interval(None, None, None, 0, "t", level, "no patient has a value")
    if not np.isfinite(x).all():
        raise ValueError(f"t_interval: {int((~np.isfinite(x)).sum())} of {x.size} values are not finite.")
    mean = float(x.mean())
    if x.size < SMALLEST_SAMPLE:
        return Interval(mean, None, None, x.size, "t", level, too_few(x.size))
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, x.size, "t", level)


def paired_t_interval(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, *, level: float = 0.95
) -> Interval:
    """Return the mean of first − second with a t interval; element i of both belongs to the same patient."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired_t_interval: {a.shape} and {b.shape} values are not pairs.")
    return t_interval(a - b, level=level)


def wilson_interval(successes: int, total: int, *, level: float = 0.95) -> Interval:
    """Return a proportion with the score interval of Wilson (1927), which stays inside [0, 1]."""
    if total == 0:
        return Interval(None, None, None, 0, "wilson", level, "no case")
    result = stats.binomtest(successes, total).proportion_ci(confidence_level=level, method="wilson")
    return Interval(successes / total, float(result.low), float(result.high), total, "wilson", level)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    patients: Sequence[str] | np.ndarray,
    *,
    level: float = 0.95,
    method: str = "bca",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return statistic(row indices) over all rows, with a bootstrap interval that redraws whole patients.

    patients: (rows,) the patient of each row. statistic: takes (m,) row indices, with repeats where a patient was
    drawn more than once, and returns a number, NaN where it is undefined (one class only).
    method: `bca` (Efron 1987) or `percentile`; `bca` becomes `percentile` where it is undefined, and the note says so.
    """
    names, cluster = np.unique(np.asarray(patients), return_inverse=True)
    rows = [np.flatnonzero(cluster == number) for number in range(len(names))]
    n = len(names)
    estimate = float(statistic(np.arange(len(cluster)))) if n else math.nan
    if not math.isfinite(estimate):
        return Interval(None, None, None, n, method, level, "undefined: one class or one value only")
    if n < SMALLEST_SAMPLE:
        return Interval(estimate, None, None, n, method, level, too_few(n))

    def of_patients(drawn: np.ndarray) -> float:
        """Return the statistic over the rows of the patients drawn."""
        return float(statistic(np.concatenate([rows[int(number)] for number in drawn])))

    def run(kind: str) -> Any:
        """Return scipy's result for one kind of interval."""
        return stats.bootstrap(
            (np.arange(n),),
            of_patients,
            vectorized=False,
            confidence_level=level,
            n_resamples=resamples,
            method=kind,
            rng=np.random.default_rng(seed),
        )

    with warnings.catch_warnings():
        # scipy warns where it returns NaN; the note below says it instead.
        warnings.simplefilter("ignore", category=RuntimeWarning)
        warnings.simplefilter("ignore", category=stats.DegenerateDataWarning)
        result = run("BCa" if method == "bca" else "percentile")
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if math.isfinite(low) and math.isfinite(high):
        return Interval(estimate, low, high, n, method, level)
    return percentile_interval(estimate, np.asarray(result.bootstrap_distribution), n, level)


def percentile_interval(estimate: float, distribution: np.ndarray, n: int, level: float) -> Interval:
    """Return the percentile interval of the defined resamples, unless too many are undefined or all are equal."""
    defined = distribution[np.isfinite(distribution)]
    undefined = 1 - defined.size / distribution.size
    if defined.size and float(np.ptp(defined)) == 0.0:
        return Interval(estimate, None, None, n, "percentile", level, "no interval: every resample gives this value")
    if undefined > _MOST_UNDEFINED:
        note = f"no interval: undefined in {undefined:.0%} of the resamples, too few patients of one class"
        return Interval(estimate, None, None, n, "percentile", level, note)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    note = f"BCa undefined; percentile interval, {undefined:.1%} of the resamples undefined and left out"
    return Interval(estimate, float(low), float(high), n, "percentile", level, note)


def too_few(n: int) -> str:
    """Return why so few patients get no interval."""
    return f"{n} patient{'s' if n != 1 else ''}: no interval below {SMALLEST_SAMPLE}"

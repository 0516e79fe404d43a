"""The stratified patient bootstrap: positives and negatives are drawn apart, so that both classes stay.

A patient is drawn with all its rows, by a weight; scipy does the drawing and BCa (Efron 1987), all resamples at once.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from fmct.metrics.intervals import SMALLEST_SAMPLE, Interval, percentile_interval, too_few
from fmct.metrics.weighted_scores import Statistic

RESAMPLES = 2000
_BATCH_NUMBERS = 4_000_000  # weights held at once


def stratified_interval(
    statistic: Statistic,
    patients: Sequence[str] | np.ndarray,
    strata: Sequence[Any] | np.ndarray,
    *,
    level: float = 0.95,
    method: str = "bca",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return statistic(weights of one) over all rows with a bootstrap interval over patients within their strata.

    statistic: weights (R, rows) → (R,), NaN where undefined. patients: (rows,) whose each row is. strata: (rows,) of
    values; a patient's stratum is the largest of its rows' (positive when any row is). method: `bca`, or `percentile`,
    which also stands in where BCa is undefined, and the note says so. A stratum of one patient has no interval.
    """
    names, cluster = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    n, rows = len(names), np.asarray(strata)
    if n == 0:
        return Interval(None, None, None, 0, method, level, "no patient")
    estimate = float(statistic(np.ones((1, len(cluster))))[0])
    if not np.isfinite(estimate):
        return Interval(None, None, None, n, method, level, "undefined: one class or one value only")
    if n < SMALLEST_SAMPLE:
        return Interval(estimate, None, None, n, method, level, too_few(n))
    stratum = np.array([rows[cluster == number].max() for number in range(n)])
    groups = tuple(np.flatnonzero(stratum == value) for value in np.unique(stratum))
    if min(map(len, groups)) < 2:
        note = "no interval: one patient in a class, which every resample would repeat"
        return Interval(estimate, None, None, n, method, level, note)

    def of_drawn(*drawn: np.ndarray, axis: int) -> np.ndarray:
        """Return the statistic of (..., n_g) patient numbers per stratum."""
        together = np.concatenate(drawn, axis=axis)
        shape = together.shape[:-1]
        flat = together.reshape(-1, together.shape[-1])
        places = flat + n * np.arange(len(flat))[:, None]
        weights = np.bincount(places.ravel(), minlength=n * len(flat)).reshape(len(flat), n)
        return np.asarray(statistic(weights[:, cluster].astype(np.float64))).reshape(shape)

    with warnings.catch_warnings():
        # scipy warns where it returns NaN; the note says it instead.
        warnings.simplefilter("ignore", category=RuntimeWarning)
        warnings.simplefilter("ignore", category=stats.DegenerateDataWarning)
        result = stats.bootstrap(
            groups,
            of_drawn,
            axis=-1,
            vectorized=True,
            batch=max(1, _BATCH_NUMBERS // max(len(cluster), 1)),
            confidence_level=level,
            n_resamples=resamples,
            method="BCa" if method == "bca" else "percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if np.isfinite(low) and np.isfinite(high) and high > low:
        return Interval(estimate, low, high, n, method, level)
    return percentile_interval(estimate, np.asarray(result.bootstrap_distribution), n, level)

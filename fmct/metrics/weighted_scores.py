"""Scores of weighted rows, all resamples at once: what the bootstrap draws again is a weight per row.

Each function takes what is fixed, scores (n,) and labels (n,) of 0 or 1, and returns a function of weights, (R, n) →
(R,), NaN where it is undefined. With weights of one they are scikit-learn's.
"""

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]


def auroc_of(scores: np.ndarray, labels: np.ndarray) -> Statistic:
    """Return the area under the ROC curve; ties count one half."""
    grouped = _Grouped(scores, labels)

    def statistic(weights: np.ndarray) -> np.ndarray:
        """Return (R,) for (R, n)."""
        positive, negative = grouped(weights)
        above = negative.sum(axis=1, keepdims=True) - negative.cumsum(axis=1)  # groups run from the highest score
        return _ratio((positive * (above + negative / 2)).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))

    return statistic


def average_precision_of(scores: np.ndarray, labels: np.ndarray) -> Statistic:
    """Return the average precision, Σ (recall step) · precision, without interpolation."""
    grouped = _Grouped(scores, labels)

    def statistic(weights: np.ndarray) -> np.ndarray:
        """Return (R,) for (R, n)."""
        positive, negative = grouped(weights)
        hits, alarms = positive.cumsum(axis=1), negative.cumsum(axis=1)
        precision = np.divide(hits, hits + alarms, out=np.zeros_like(hits), where=hits + alarms > 0)
        found = _ratio((positive * precision).sum(axis=1), positive.sum(axis=1))
        return np.where(negative.sum(axis=1) > 0, found, np.nan)

    return statistic


def partial_auroc_of(scores: np.ndarray, labels: np.ndarray, most_alarms: float) -> Statistic:
    """Return the ROC area up to a false positive rate, on McClish's (1989) scale: .5 is chance, 1 perfect."""
    grouped = _Grouped(scores, labels)

    def statistic(weights: np.ndarray) -> np.ndarray:
        """Return (R,) for (R, n)."""
        rate, alarms = _curve(*grouped(weights))
        y0, x0, y1, x1 = rate[:, :-1], alarms[:, :-1], rate[:, 1:], alarms[:, 1:]
        end = np.minimum(x1, most_alarms)
        width = np.maximum(end - x0, 0.0)
        share = np.divide(end - x0, x1 - x0, out=np.ones_like(x0), where=x1 > x0)
        area = (width * (y0 + (y0 + (y1 - y0) * share)) / 2).sum(axis=1)
        lowest = most_alarms**2 / 2
        return 0.5 * (1 + (area - lowest) / (most_alarms - lowest))

    return statistic


def sensitivity_at(scores: np.ndarray, labels: np.ndarray, specificity: float) -> Statistic:
    """Return the best sensitivity of any threshold whose specificity is at least this; not a frozen threshold."""
    grouped = _Grouped(scores, labels)

    def statistic(weights: np.ndarray) -> np.ndarray:
        """Return (R,) for (R, n)."""
        rate, alarms = _curve(*grouped(weights))
        found = np.where(alarms <= 1 - specificity + 1e-12, rate, 0.0).max(axis=1)
        return np.where(np.isfinite(rate[:, -1] + alarms[:, -1]), found, np.nan)

    return statistic


def share_of(hits: np.ndarray, cases: np.ndarray) -> Statistic:
    """Return the weighted share of (n,) `hits` among (n,) `cases`, both bool: sensitivity, specificity, accuracy."""
    counted, among = (np.asarray(hits) & np.asarray(cases)).astype(float), np.asarray(cases).astype(float)
    return lambda weights: _ratio(weights @ counted, weights @ among)


def f1_of(decisions: np.ndarray, labels: np.ndarray) -> Statistic:
    """Return 2 TP / (2 TP + FP + FN) of (n,) bool decisions."""
    positive, true = np.asarray(decisions).astype(bool), np.asarray(labels).astype(bool)
    hits, both = (positive & true).astype(float), positive.astype(float) + true.astype(float)
    return lambda weights: _ratio(2 * (weights @ hits), weights @ both)


def mean_of(values: np.ndarray) -> Statistic:
    """Return the weighted mean of (n,) values, such as squared errors (Brier's score)."""
    fixed = np.asarray(values, dtype=np.float64)
    return lambda weights: _ratio(weights @ fixed, weights.sum(axis=1))


class _Grouped:
    """Sums weights of positives and negatives over equal scores, from the highest score down."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        x = np.asarray(scores, dtype=np.float64)
        self.order = np.argsort(-x, kind="stable")
        self.starts = np.flatnonzero(np.r_[True, np.diff(x[self.order]) != 0]) if len(x) else np.zeros(0, int)
        self.positive = np.asarray(labels).astype(bool)[self.order]

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (R, G) weights of positives and of negatives per group."""
        placed = np.asarray(weights, dtype=np.float64)[:, self.order]
        parts = (np.where(self.positive, placed, 0.0), np.where(self.positive, 0.0, placed))
        positive, negative = (np.add.reduceat(part, self.starts, axis=1) for part in parts)
        return positive, negative


def _curve(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (R, 1 + G) sensitivity and false positive rate, from (0, 0) on; NaN without one of the classes."""
    curves = []
    for part in (positive, negative):
        total = part.sum(axis=1, keepdims=True)
        rate = np.divide(part.cumsum(axis=1), total, out=np.full_like(part, np.nan), where=total > 0)
        curves.append(np.concatenate([np.zeros((len(part), 1)), rate], axis=1))
    return curves[0], curves[1]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)

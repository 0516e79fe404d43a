"""Slow, obvious versions of what the probes compute."""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import roc_auc_score


def auroc_by_pairs(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of (positive, negative) pairs that are in the right order; ties count half."""
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[truth.astype(bool)]
        for n in scores[~truth.astype(bool)]
    ]
    return float(np.mean(wins))


def clustered_percentiles(
    statistic: Callable[[np.ndarray], float], patients: Sequence[str], *, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of a statistic over resampled patients."""
    random = np.random.default_rng(seed)
    names = sorted(set(patients))
    values = []
    for _ in range(resamples):
        drawn = random.choice(names, size=len(names))
        rows = [row for name in drawn for row, owner in enumerate(patients) if owner == name]
        values.append(statistic(np.array(rows)))
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def knn_scores(x: np.ndarray, y: np.ndarray, new: np.ndarray, k: int) -> np.ndarray:
    """Return the share of positives among the k nearest by cosine, each weighing 1 + cosine."""
    scores = []
    for row in new:
        cosines = np.array([row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in x])
        nearest = np.argsort(-cosines)[:k]
        weights = 1 + cosines[nearest]
        scores.append((weights * y[nearest]).sum() / weights.sum())
    return np.array(scores)


def token_table(hu: np.ndarray, mask: np.ndarray, patch: int) -> list[tuple[float, float]]:
    """Return (mean HU, lesion share) of each cubic patch of one window, z slowest."""
    d, h, w = (n // patch for n in hu.shape)
    rows = []
    for z in range(d):
        for y in range(h):
            for x in range(w):
                box = np.s_[z * patch : (z + 1) * patch, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
                rows.append((float(hu[box].mean()), float(mask[box].mean())))
    return rows


def macro_auroc(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return scikit-learn's one-against-rest macro AUROC of class probabilities."""
    return float(roc_auc_score(truth, predicted, multi_class="ovr", average="macro"))

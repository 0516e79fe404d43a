"""Slow and obvious versions of the evaluation's statistics, to test the fast ones against."""

from collections.abc import Sequence

import numpy as np


def auroc_by_pairs(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Return the share of (positive, negative) pairs in the right order, ties one half."""
    pairs = [
        (p, n) for p, y in zip(scores, labels, strict=True) if y for n, z in zip(scores, labels, strict=True) if not z
    ]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def delong_covariance(a: Sequence[float], b: Sequence[float], labels: Sequence[int]) -> float:
    """Return DeLong's covariance of two models' AUROC by its definition: all kernels, one by one."""
    positive, negative = [k for k, y in enumerate(labels) if y], [k for k, y in enumerate(labels) if not y]

    def kernel(x: Sequence[float], i: int, j: int) -> float:
        return 1.0 if x[i] > x[j] else 0.5 if x[i] == x[j] else 0.0

    v10 = [[np.mean([kernel(x, i, j) for j in negative]) for i in positive] for x in (a, b)]
    v01 = [[np.mean([kernel(x, i, j) for i in positive]) for j in negative] for x in (a, b)]
    m, n = len(positive), len(negative)
    return float(np.cov(v10[0], v10[1])[0, 1] / m + np.cov(v01[0], v01[1])[0, 1] / n)


def obuchowski_variance(scores: Sequence[float], labels: Sequence[int], clusters: Sequence[str]) -> float:
    """Return the variance of an AUROC of clustered rows, as Obuchowski (1997) sums it, without its cross term."""
    auc = auroc_by_pairs(scores, labels)
    positive, negative = [k for k, y in enumerate(labels) if y], [k for k, y in enumerate(labels) if not y]
    one = lambda i, j: 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0  # noqa: E731
    total = 0.0
    for own, other, flip in ((positive, negative, False), (negative, positive, True)):
        names = sorted({clusters[k] for k in own})
        sums = []
        for name in names:
            rows = [k for k in own if clusters[k] == name]
            v = [np.mean([one(j, i) if flip else one(i, j) for j in other]) for i in rows]
            sums.append(sum(v) - len(rows) * auc)
        s = len(names) / ((len(names) - 1) * len(own)) * sum(x * x for x in sums)
        total += s / len(own)
    return total


def sign_flips(differences: Sequence[float]) -> float:
    """Return the exact two-sided p by trying every pattern of signs."""
    x = np.asarray(differences, dtype=float)
    patterns = np.array(np.meshgrid(*[[-1, 1]] * len(x))).reshape(len(x), -1).T
    means = np.abs((patterns * x).mean(axis=1))
    return float((means >= abs(x.mean()) - 1e-12).mean())


def equal_mass_error(probabilities: Sequence[float], labels: Sequence[int], bins: int) -> float:
    """Return the ECE of sorted, evenly divided patients (no ties)."""
    order = np.argsort(probabilities)
    parts = [part for part in np.array_split(order, bins) if len(part)]
    p, y = np.asarray(probabilities), np.asarray(labels)
    return float(sum(len(part) * abs(p[part].mean() - y[part].mean()) for part in parts) / len(p))


def surface_points(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return (n, 3) mm of the voxels of a mask that touch its outside by a face."""
    inside = {tuple(v) for v in np.argwhere(mask)}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    edge = [v for v in inside if any((v[0] + a, v[1] + b, v[2] + c) not in inside for a, b, c in steps)]
    return np.array(sorted(edge)) * np.asarray(spacing)

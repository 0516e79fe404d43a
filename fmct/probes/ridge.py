"""Ridge regression on standardised features, λ by inner cross-validation over whole groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(10.0**power for power in range(-2, 7))
_INNER_FOLDS = 4


@dataclass(frozen=True)
class Ridge:
    """y ≈ offset + ((x − mean) / deviation) @ weights; weights (E, T)."""

    weights: np.ndarray
    offset: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    penalty: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return (M, T) for (M, E)."""
        return ((x - self.mean) / self.deviation) @ self.weights + self.offset


def fit_ridge(
    x: np.ndarray, y: np.ndarray, groups: Sequence[str] | np.ndarray, *, penalties: Sequence[float] = PENALTIES
) -> Ridge:
    """Return the ridge regression of (M, E) → (M, T), its λ the best over folds of whole groups.

    λ minimises the squared error summed over held-out rows, each target in units of its variance; with fewer than two
    groups it is the middle one of `penalties`. λ weighs the squared weights against the sum of squared errors.
    """
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    penalty = penalties[len(penalties) // 2]
    if len(names) > 1 and len(penalties) > 1:
        errors = np.zeros(len(penalties))
        unit = y.std(axis=0)
        unit = np.where(unit > 0, unit, 1.0)
        folds = min(_INNER_FOLDS, len(names))
        for fold in range(folds):
            held = number % folds == fold
            for place, model in enumerate(_path(x[~held], y[~held], penalties)):
                errors[place] += (((model.predict(x[held]) - y[held]) / unit) ** 2).sum()
        penalty = penalties[int(np.argmin(errors))]
    return _path(x, y, [penalty])[0]


def _path(x: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> list[Ridge]:
    """Return the solution for each λ, from one eigendecomposition of the smaller Gram matrix."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    z, offset = (x - mean) / deviation, y.mean(axis=0)
    target = y - offset
    wide = z.shape[1] > z.shape[0]
    values, vectors = np.linalg.eigh(z @ z.T if wide else z.T @ z)
    values = np.maximum(values, 0.0)
    projected = vectors.T @ (target if wide else z.T @ target)
    models = []
    for penalty in penalties:
        solved = vectors @ (projected / (values + penalty)[:, None])
        models.append(Ridge(z.T @ solved if wide else solved, offset, mean, deviation, float(penalty)))
    return models

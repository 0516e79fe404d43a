import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score, roc_curve

from fmct.metrics.weighted_scores import (
    auroc_of,
    average_precision_of,
    f1_of,
    mean_of,
    partial_auroc_of,
    sensitivity_at,
    share_of,
)

RANDOM = np.random.default_rng(0)
LABELS = (RANDOM.random(90) < 0.3).astype(int)
SCORES = np.round(RANDOM.normal(size=90) + LABELS, 1)  # ties on purpose
WEIGHTS = RANDOM.integers(0, 4, (5, 90)).astype(float)


def test_every_row_of_weights_is_scikit_learns() -> None:
    for k, w in enumerate(WEIGHTS):
        check = {"sample_weight": w}
        assert auroc_of(SCORES, LABELS)(WEIGHTS)[k] == pytest.approx(roc_auc_score(LABELS, SCORES, **check))
        found = average_precision_of(SCORES, LABELS)(WEIGHTS)[k]
        assert found == pytest.approx(average_precision_score(LABELS, SCORES, **check))
        partial = partial_auroc_of(SCORES, LABELS, 0.1)(WEIGHTS)[k]
        assert partial == pytest.approx(roc_auc_score(LABELS, SCORES, max_fpr=0.1, **check))
        decided = SCORES >= 0.5
        assert f1_of(decided, LABELS)(WEIGHTS)[k] == pytest.approx(f1_score(LABELS, decided, **check))
        p = 1 / (1 + np.exp(-SCORES))
        assert mean_of((p - LABELS) ** 2)(WEIGHTS)[k] == pytest.approx(brier_score_loss(LABELS, p, **check))
        alarms, hits, _ = roc_curve(LABELS, SCORES, drop_intermediate=False, **check)
        assert sensitivity_at(SCORES, LABELS, 0.9)(WEIGHTS)[k] == pytest.approx(hits[alarms <= 0.1 + 1e-12].max())


def test_undefined_is_nan_and_not_a_number_that_looks_good() -> None:
    positives = np.where(LABELS == 1, 1.0, 0.0)[None]
    for make in (auroc_of, average_precision_of):
        assert np.isnan(make(SCORES, LABELS)(positives))
    assert np.isnan(sensitivity_at(SCORES, LABELS, 0.9)(positives))
    assert np.isnan(share_of(SCORES > 0, LABELS == 0)(positives))


def test_share_of_some_cases() -> None:
    hits, cases = np.array([1, 1, 0, 1], dtype=bool), np.array([1, 1, 1, 0], dtype=bool)
    assert share_of(hits, cases)(np.array([[1.0, 1, 1, 1], [0, 2, 1, 9]])) == pytest.approx([2 / 3, 2 / 3])

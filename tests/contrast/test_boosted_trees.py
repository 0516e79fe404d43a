"""Boosted trees as plain numbers: what scikit-learn predicts, to the last bits, and nothing else that opens."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from fmct.contrast import boosted_trees
from fmct.contrast.boosted_trees import BoostedTrees, fit_classes, fit_number
from fmct.errors import ArtefactError

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(80, 5))
ROWS[RANDOM.random(ROWS.shape) < 0.25] = np.nan
TWO = (np.nan_to_num(ROWS[:, 0]) + np.nan_to_num(ROWS[:, 1]) > 0).astype(int)
THREE = TWO + (np.nan_to_num(ROWS[:, 2]) > 0)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosted_trees, "ROUNDS", 15)


def written(trees: BoostedTrees) -> BoostedTrees:
    """Return the trees after a journey through JSON without NaN or infinity."""
    return BoostedTrees.from_dict(json.loads(json.dumps(trees.to_dict(), allow_nan=False)), "trees")


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_probabilities_are_scikit_learn_s(classes: np.ndarray) -> None:
    settings = boosted_trees._settings(len(ROWS))
    expected = HistGradientBoostingClassifier(**settings).fit(ROWS, classes).predict_proba(ROWS)
    raw = written(fit_classes(ROWS, classes, ROWS[:0], classes[:0])).raw(ROWS)
    if raw.shape[1] == 1:
        raw = np.concatenate([np.zeros_like(raw), raw], axis=1)
    shares = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    assert np.allclose(shares, expected, atol=1e-12)


def test_numbers_are_scikit_learn_s() -> None:
    values = 3.0 * THREE + np.nan_to_num(ROWS[:, 3])
    expected = HistGradientBoostingRegressor(**boosted_trees._settings(len(ROWS))).fit(ROWS, values).predict(ROWS)
    assert np.allclose(written(fit_number(ROWS, values, ROWS[:0], values[:0])).raw(ROWS)[:, 0], expected, atol=1e-12)


def test_validation_chooses_the_rounds() -> None:
    """Labels that training contradicts are served best by the fewest rounds; its own by many."""
    against = fit_classes(ROWS, TWO, ROWS, 1 - TWO)
    along = fit_classes(ROWS, TWO, ROWS, TWO)
    assert len(against.rounds) == 1
    assert len(along.rounds) == 15


def test_a_split_on_absence_alone_survives(tmp_path: Path) -> None:
    """Where only NaN tells the classes apart the threshold is infinite, which JSON does not know."""
    rows = np.where(np.arange(40) % 2 == 0, 1.0, np.nan)[:, None]
    trees = written(fit_classes(rows, np.arange(40) % 2, rows[:0], np.zeros(0, int)))
    assert (trees.raw(rows)[1::2] > 0).all()
    assert (trees.raw(rows)[::2] < 0).all()


def test_a_tree_that_goes_in_circles_is_refused() -> None:
    tree = fit_classes(ROWS, TWO, ROWS[:0], TWO[:0]).to_dict()
    tree["rounds"][0][0]["left"][0] = 0
    with pytest.raises(ArtefactError, match="not usable trees"):
        BoostedTrees.from_dict(tree, "trees")
    with pytest.raises(ArtefactError, match="not usable trees"):
        BoostedTrees.from_dict({"start": [0.0]}, "trees")

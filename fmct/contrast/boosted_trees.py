"""Gradient boosting by scikit-learn, kept as plain numbers: fitted there, written as JSON, read and applied here.

A pickle of an estimator runs code when it is opened, and opens in the release that wrote it alone; a tree is a few
lists of numbers. scikit-learn is needed to fit, not to predict, and a test holds both predictions against each other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmct.errors import ArtefactError

ROUNDS, RATE, LEAVES = 200, 0.08, 8


@dataclass(frozen=True)
class Tree:
    """Nodes of one tree, (n,) each; node 0 is the root. feature −1: a leaf, whose `value` counts.

    A row goes left where its feature is at most the threshold; where it is NaN, as `missing_left` says.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    value: np.ndarray

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the (n,) leaf values of (n, F) rows."""
        at = np.zeros(len(rows), dtype=np.int64)
        while (inner := self.feature[at] >= 0).any():
            node = at[inner]
            seen = rows[inner, self.feature[node]]
            left = np.where(np.isnan(seen), self.missing_left[node], seen <= self.threshold[node])
            at[inner] = np.where(left, self.left[node], self.right[node])
        return self.value[at]


@dataclass(frozen=True)
class BoostedTrees:
    """start: (K,), and rounds of K trees each; their sum is a row's raw score. K is 1 for two classes or a number."""

    start: np.ndarray
    rounds: tuple[tuple[Tree, ...], ...]

    def raw(self, rows: np.ndarray) -> np.ndarray:
        """Return (n, K) raw scores of (n, F) rows: a log-odds, softmax logits, or the number itself."""
        rows = np.asarray(rows, dtype=np.float64)
        trees = [np.stack([tree.of(rows) for tree in trees], axis=1) for trees in self.rounds]
        return np.sum(trees, axis=0) + self.start if trees else np.tile(self.start, (len(rows), 1))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers; an infinite threshold (only NaN go right) is null."""
        return {"start": self.start.tolist(), "rounds": [[_plain(tree) for tree in trees] for trees in self.rounds]}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str) -> "BoostedTrees":
        """Return the trees of `to_dict`'s tree. Raises ArtefactError for one that is none."""
        try:
            rounds = tuple(tuple(_tree(part) for part in trees) for trees in tree["rounds"])
            return cls(np.array(tree["start"], dtype=np.float64), rounds)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ArtefactError(f"{where}: not usable trees ({error}).") from None


def fit_classes(rows: np.ndarray, classes: np.ndarray, held_rows: np.ndarray, held: np.ndarray) -> BoostedTrees:
    """Return boosted trees for classes 0 to K − 1, all of which are in (n,) `classes`.

    rows: (n, F), NaN where unknown. held_rows, held: the validation series; the rounds are those of its least log loss,
    and all ROUNDS without any. Fitting is deterministic.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(**_settings(len(rows))).fit(rows, classes)
    keep = ROUNDS
    if len(held):
        losses = [_log_loss(shares, held) for shares in model.staged_predict_proba(held_rows)]
        keep = 1 + int(np.argmin(losses))
    return _extracted(model, keep)


def fit_number(rows: np.ndarray, values: np.ndarray, held_rows: np.ndarray, held: np.ndarray) -> BoostedTrees:
    """Return boosted trees for a number, as many rounds as give the least absolute error on validation."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(**_settings(len(rows))).fit(rows, values)
    keep = ROUNDS
    if len(held):
        keep = 1 + int(np.argmin([np.abs(guess - held).mean() for guess in model.staged_predict(held_rows)]))
    return _extracted(model, keep)


def _settings(rows: int) -> dict[str, Any]:
    """Return scikit-learn's settings; leaves hold fewer series where there are few."""
    return {
        "max_iter": ROUNDS,
        "learning_rate": RATE,
        "max_leaf_nodes": LEAVES,
        "min_samples_leaf": max(2, min(20, rows // 8)),
        "l2_regularization": 1.0,
        "early_stopping": False,
        "random_state": 0,
    }


def _extracted(model: Any, keep: int) -> BoostedTrees:
    """Return a fitted estimator's first rounds. Its nodes have no public name: a release without them fails here."""
    rounds = tuple(tuple(_of_nodes(one.nodes) for one in trees) for trees in model._predictors[:keep])
    return BoostedTrees(np.atleast_1d(np.asarray(model._baseline_prediction, dtype=np.float64).ravel()), rounds)


def _of_nodes(nodes: np.ndarray) -> Tree:
    leaf = nodes["is_leaf"].astype(bool)
    return Tree(
        feature=np.where(leaf, -1, nodes["feature_idx"].astype(np.int64)),
        threshold=np.where(leaf, 0.0, nodes["num_threshold"]),
        left=nodes["left"].astype(np.int64),
        right=nodes["right"].astype(np.int64),
        missing_left=nodes["missing_go_to_left"].astype(bool),
        value=nodes["value"].astype(np.float64),
    )


def _log_loss(shares: np.ndarray, classes: np.ndarray) -> float:
    return float(-np.log(np.clip(shares[np.arange(len(classes)), classes], 1e-12, 1)).mean())


def _plain(tree: Tree) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: values.tolist() for name, values in vars(tree).items()}
    return found | {"threshold": [None if math.isinf(value) else value for value in found["threshold"]]}


def _tree(plain: Mapping[str, Sequence[Any]]) -> Tree:
    """Return a tree of lists. Raises ValueError where a child does not lie behind its parent: no walk would end."""
    number = len(plain["feature"])
    threshold = [math.inf if value is None else float(value) for value in plain["threshold"]]
    tree = Tree(
        np.array(plain["feature"], dtype=np.int64),
        np.array(threshold),
        np.array(plain["left"], dtype=np.int64),
        np.array(plain["right"], dtype=np.int64),
        np.array(plain["missing_left"], dtype=bool),
        np.array(plain["value"], dtype=np.float64),
    )
    place = np.arange(number)
    inner = tree.feature >= 0
    children = np.stack([tree.left, tree.right])
    whole = all(len(values) == number for values in vars(tree).values())
    if not number or not whole or (inner & ((children <= place) | (children >= number)).any(axis=0)).any():
        raise ValueError("a node's children do not lie behind it")
    return tree

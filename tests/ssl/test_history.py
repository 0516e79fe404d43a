import math

import pytest
import torch

from fmct.ssl.history import FeatureHistory, TargetHistory


def one_hot(indices: list[int], k: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(indices), k).float()


def test_entropies_of_sharp_and_flat_targets():
    history = TargetHistory(4, marginal_rows=1000, usage_rows=1000)
    assert history.observe(one_hot([0, 1, 2, 3], 4)).item() == 0.0
    measured = history.measures()
    assert measured["teacher_entropy"].item() == 0.0
    assert measured["marginal_entropy"].item() == pytest.approx(1.0)
    assert measured["prototype_usage"].item() == pytest.approx(1.0)
    assert history.observe(torch.full((3, 4), 0.25)).item() == pytest.approx(math.log(4))
    assert history.measures()["teacher_entropy"].item() == pytest.approx(1.0)


def test_one_point_is_seen_within_a_half_life():
    history = TargetHistory(8, marginal_rows=16, usage_rows=16)
    history.observe(one_hot(list(range(8)) * 4, 8))
    for _ in range(16):
        history.observe(one_hot([5] * 8, 8))
    measured = history.measures()
    assert measured["marginal_entropy"].item() < 0.05
    assert measured["prototype_usage"].item() == pytest.approx(1 / 8, rel=0.1)


def test_usage_is_measured_against_what_few_rows_could_use():
    history = TargetHistory(1000, marginal_rows=10_000, usage_rows=10_000)
    history.observe(one_hot([1, 2, 3, 4], 1000))
    assert history.measures()["prototype_usage"].item() == pytest.approx(1.0)


def test_bad_rows_and_empty_parts_change_nothing():
    history = TargetHistory(3, marginal_rows=10, usage_rows=10)
    history.observe(torch.zeros(0, 3))
    assert history.measures() == {}
    history.observe(one_hot([0, 1], 3))
    before = {name: value.clone() for name, value in history.measures().items()}
    history.observe(torch.full((2, 3), torch.nan))
    history.observe(torch.zeros(0, 3))
    assert {name: value.item() for name, value in history.measures().items()} == {
        name: value.item() for name, value in before.items()
    }


def test_features_roll_in_order():
    history = FeatureHistory(1, rows=5)
    for step in range(4):
        history.observe(torch.tensor([[[2.0 * step]], [[2.0 * step + 1]]]))
        assert history.full == (step >= 2)
        assert len(history.filled) == min(5, 2 * step + 2)
    assert sorted(history.rows.flatten().tolist()) == [3, 4, 5, 6, 7]
    assert history.recent(1).flatten().tolist() == [6, 7]
    assert history.recent(4).flatten().tolist() == [4, 5, 6, 7]
    assert len(history.recent(100)) == 5


def test_more_features_than_rows_keep_the_last():
    history = FeatureHistory(1, rows=3)
    history.observe(torch.arange(8.0).view(4, 2, 1))
    assert sorted(history.rows.flatten().tolist()) == [5, 6, 7]


def test_a_feature_that_is_not_finite_is_not_kept():
    history = FeatureHistory(2, rows=4)
    history.observe(torch.tensor([[[1.0, torch.nan]], [[1.0, 2.0]]]))
    assert history.rows[:2].tolist() == [[0.0, 0.0], [1.0, 2.0]]


def test_state_comes_back_exactly():
    targets, features = TargetHistory(5, marginal_rows=7, usage_rows=9), FeatureHistory(3, rows=4)
    for step in range(3):
        targets.observe(torch.randn(6, 5).softmax(1))
        features.observe(torch.randn(1, 2, 3) + step)
    other_targets, other_features = TargetHistory(5, marginal_rows=7, usage_rows=9), FeatureHistory(3, rows=4)
    other_targets.load(targets.state())
    other_features.load(features.state())
    more = torch.randn(6, 5).softmax(1)
    for history in (targets, other_targets):
        history.observe(more)
    assert all(torch.equal(a, other_targets.measures()[name]) for name, a in targets.measures().items())
    assert torch.equal(features.rows, other_features.rows)
    assert features.seen == other_features.seen

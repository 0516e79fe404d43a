import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.bag import MilHead
from tests.models.networks import noise

BAGS = torch.tensor([1, 0, 1, 1, 2, 0])


def head() -> MilHead:
    torch.manual_seed(0)
    made = MilHead(5, 2, hidden=7)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def test_bags_agree_with_a_loop() -> None:
    mil, rows = head(), noise(6, 5)
    logits, weights = mil(rows, BAGS, 3)
    for bag in range(3):
        h = rows[bag == BAGS]
        score = mil.score(torch.tanh(mil.value(h)) * torch.sigmoid(mil.gate(h)))[:, 0]
        torch.testing.assert_close(weights[bag == BAGS], score.softmax(0))
        torch.testing.assert_close(logits[bag], mil.linear(score.softmax(0) @ h))


def test_a_bag_knows_neither_the_others_nor_an_order_nor_its_size() -> None:
    mil, rows = head(), noise(6, 5)
    logits, _ = mil(rows, BAGS, 3)
    shuffled = torch.tensor([4, 2, 0, 5, 1, 3])
    torch.testing.assert_close(mil(rows[shuffled], BAGS[shuffled], 3)[0], logits)
    torch.testing.assert_close(mil(rows[BAGS == 1], torch.zeros(3, dtype=torch.int64), 1)[0][0], logits[1])
    torch.testing.assert_close(mil(rows.repeat(2, 1), BAGS.repeat(2), 3)[0], logits)


def test_large_scores_stay_finite() -> None:
    mil = head()
    torch.nn.init.constant_(mil.score.weight, 1e4)
    logits, weights = mil(noise(6, 5), BAGS, 3)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(weights).all()
    assert all(torch.isfinite(p.grad).all() for p in mil.parameters() if p.grad is not None)


def test_misfits_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"bags \[1\] have none"):
        head()(noise(2, 5), torch.tensor([0, 2]), 3)
    with pytest.raises(ConfigError, match="numbers from 0 to 1"):
        head()(noise(2, 5), torch.tensor([0, 2]), 2)
    with pytest.raises(ConfigError, match="int64"):
        head()(noise(2, 5), torch.tensor([0.0, 1.0]), 2)

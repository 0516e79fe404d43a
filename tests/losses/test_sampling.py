import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.sampling import chosen, priorities


def test_orders_are_permutations_keyed_by_seed_and_purpose():
    orders = priorities([3, 5, 3], batch=3, length=40, purpose="a")
    assert torch.equal(orders.sort(1).values, torch.arange(40).expand(3, 40))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(priorities(5, batch=2, length=40, purpose="a"), orders[1].expand(2, 40))
    assert torch.equal(priorities(torch.tensor([5]), batch=1, length=40, purpose="a"), orders[1:2])
    assert not torch.equal(priorities(3, batch=1, length=40, purpose="b")[0], orders[0])
    assert priorities([], batch=0, length=40, purpose="a").shape == (0, 40)


def test_only_eligible_tokens_are_chosen_and_all_when_there_are_few():
    order = priorities([0, 1], batch=2, length=30, purpose="a")
    eligible = torch.zeros(2, 30, dtype=torch.bool)
    eligible[0, 4:9] = True
    eligible[1, ::2] = True
    index, taken = chosen(eligible, order, 8)
    assert index[0, taken[0]].sort().values.tolist() == [4, 5, 6, 7, 8]
    assert taken[1].all()
    assert eligible[1, index[1]].all()
    assert order[1, index[1]].tolist() == order[1, eligible[1]].sort().values[:8].tolist()


def test_another_number_of_seeds_is_refused():
    with pytest.raises(ConfigError, match="3 samples; got 2"):
        priorities([1, 2], batch=3, length=4, purpose="a")
    with pytest.raises(ConfigError, match="3 samples; got 1"):
        priorities([1], batch=3, length=4, purpose="a")

import pytest
import torch

from fmct import distributed
from tests.ranks import run_ranks


def test_without_a_process_group_there_is_one_rank():
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert not distributed.is_initialised()
    assert torch.equal(distributed.sum_over_ranks(tensor), tensor.detach())
    assert torch.equal(distributed.max_over_ranks(tensor), tensor.detach())
    assert distributed.gather_with_gradient(tensor) is tensor
    assert not distributed.gather(tensor).requires_grad
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
    distributed.barrier()
    distributed.finalise()


def collectives() -> dict:
    rank = distributed.rank()
    values = torch.tensor([1.0 + rank, 10.0 - rank])
    result = {
        "ranks": (rank, distributed.world_size(), distributed.is_initialised()),
        "sum": distributed.sum_over_ranks(values),
        "max": distributed.max_over_ranks(values),
        "unchanged": values.clone(),
        "gather": distributed.gather(torch.full((2, 3), float(rank)).T),
        "objects": distributed.gather_objects({"rank": rank, "text": "x" * (rank + 1)}),
    }
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 10 * rank
    own.requires_grad_()
    everyone = distributed.gather_with_gradient(own)
    weights = torch.arange(8.0).view(4, 2) * (rank + 1)
    (everyone * weights).sum().backward()
    result["gathered"], result["gradient"] = everyone.detach(), own.grad
    return result


def test_collectives_on_two_ranks():
    first, second = run_ranks(collectives)
    assert first["ranks"] == (0, 2, True)
    assert second["ranks"] == (1, 2, True)
    for rank, result in enumerate((first, second)):
        assert result["sum"].tolist() == [3.0, 19.0]
        assert result["max"].tolist() == [2.0, 10.0]
        assert result["unchanged"].tolist() == [1.0 + rank, 10.0 - rank]
        assert torch.equal(result["gather"], torch.tensor([[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 3))
        assert result["objects"] == [{"rank": 0, "text": "x"}, {"rank": 1, "text": "xx"}]
        assert result["gathered"].tolist() == [[1, 2], [3, 4], [11, 12], [13, 14]]
        # The weights of both ranks for this rank's rows: 1 + 2 times the base weight.
        assert torch.equal(result["gradient"], 3 * torch.arange(8.0).view(4, 2)[2 * rank : 2 * rank + 2])


def fail_on_one_rank() -> None:
    if distributed.rank() == 1:
        raise ValueError("this rank fails")


def test_a_failure_on_one_rank_is_named():
    with pytest.raises(AssertionError, match=r"rank 1(.|\n)*this rank fails"):
        run_ranks(fail_on_one_rank)

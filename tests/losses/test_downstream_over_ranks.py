"""Two ranks with unequal contributors, one of them with none: every term is the whole batch's, value and gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fmct import distributed
from fmct.losses.alignment import inter_feature_alignment
from fmct.losses.attention import attention_loss
from fmct.losses.bag import bag_loss
from fmct.losses.classification import binary_loss
from fmct.losses.collapse import AlignmentMonitor
from fmct.losses.discrepancy import intra_feature_discrepancy
from fmct.losses.distillation import distillation_loss
from fmct.losses.foreground_bank import ForegroundBank
from fmct.losses.segmentation import segmentation_loss
from fmct.losses.term import Term
from tests.ranks import run_ranks

BATCH, GRID = 6, (2, 3, 4)


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    share = torch.zeros(BATCH, 1, *GRID, dtype=torch.float64)
    share[0, 0, 0, 1, :2] = torch.tensor([1.0, 0.5])
    share[4, 0, 1, 2, 3] = 0.1
    share[5, 0, 0, 0] = 0.8
    return {
        "nct": normal(BATCH, 5, *GRID),
        "ctpa": normal(BATCH, 5, *GRID),
        "share": share,
        "valid": torch.rand(BATCH, 1, *GRID, generator=generator, dtype=torch.float64) + 0.3,
        "weight": torch.tensor([0.0, 0.3, 0.0, 1.0, 0.6, 1.0], dtype=torch.float64),
        "has_mask": torch.tensor([True, False, False, False, True, True]),
        "labels": torch.tensor([1.0, torch.nan, torch.nan, 0.0, 1.0, 0.0], dtype=torch.float64),
        "classes": torch.tensor([1, -1, -1, 0, 1, 0]),
        "bags": torch.tensor([3, 3, 8, 8, 3, 5]),
        "of_bag": torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, torch.nan], dtype=torch.float64),
        "logits": normal(BATCH, 1),
        "attention": normal(BATCH, 24).sigmoid(),
        "seeds": torch.arange(BATCH),
    }


# Each takes inputs and the leaf that its gradient is wanted for.
TERMS: dict[str, tuple[str, Callable[[dict[str, Tensor]], Term | Tensor]]] = {
    "alignment": (
        "nct",
        lambda i: inter_feature_alignment(
            i["nct"], i["ctpa"], valid=i["valid"], foreground=i["share"], pair_weight=i["weight"]
        ),
    ),
    "nonlocal alignment": (
        "ctpa",
        lambda i: inter_feature_alignment(
            i["nct"], i["ctpa"], has_pair=i["weight"] > 0, contiguity="nonlocal", samples=9, seed=i["seeds"]
        ),
    ),
    "discrepancy": (
        "nct",
        lambda i: intra_feature_discrepancy(
            i["nct"], i["share"], spacing_mm=(4, 4, 4), has_mask=i["has_mask"], samples=6, seed=i["seeds"]
        ),
    ),
    "segmentation": (
        "nct",
        lambda i: segmentation_loss(i["nct"][:, :1], i["share"], valid=i["valid"].clamp(max=1), has_mask=i["has_mask"]),
    ),
    "classification": ("logits", lambda i: binary_loss(i["logits"], i["labels"])),
    "bags": ("logits", lambda i: bag_loss(i["logits"], i["bags"], i["of_bag"])),
    "attended bags": (
        "logits",
        lambda i: bag_loss(i["logits"], i["bags"], i["of_bag"], attention=i["logits"].square()[:, 0]),
    ),
    "distillation": (
        "logits",
        lambda i: distillation_loss(i["logits"], i["ctpa"][:, :1, 0, 0, 0], i["classes"], 3, 0.4),
    ),
    "attention": ("attention", lambda i: attention_loss(i["attention"], i["share"], has_mask=i["has_mask"])),
}


def outcome(name: str, rows: slice) -> tuple[Tensor, float, Tensor]:
    """Return value, count and gradient of a term on some rows."""
    leaf, function = TERMS[name]
    given = {key: value[rows].clone() for key, value in inputs().items()}
    given[leaf].requires_grad_()
    term = function(given)
    loss, count = (term.loss, term.count.item()) if isinstance(term, Term) else (term, 0.0)
    return loss.detach(), count, torch.autograd.grad(loss, given[leaf])[0]


def rank_results() -> dict:
    half = BATCH // 2
    rank = distributed.rank()
    part = slice(rank * half, (rank + 1) * half)
    results: dict = {name: outcome(name, part) for name in TERMS}
    nobody = {"has_mask": False, "weight": 0.0, "labels": torch.nan, "of_bag": torch.nan}
    results["nobody"] = [outcome_without(name, nobody, part) for name in TERMS if name != "distillation"]
    # All rows of one rank, none of the other: what a batch without any pair on one rank calls for.
    lonely = slice(0, BATCH) if rank == 1 else slice(0, 0)
    results["lonely"] = {name: outcome(name, lonely) for name in ("alignment", "discrepancy", "segmentation")}
    monitor = AlignmentMonitor()
    monitor.observe({"nct": inputs()["nct"][lonely]})
    bank = ForegroundBank(2, size=4)
    bank.observe([torch.tensor([1.0, 0.0])] if rank == 0 else [torch.tensor([0.0, 1.0])] * 2)
    bank.apply()
    results["state"] = (monitor.last, bank.prototypes())
    return results


def outcome_without(name: str, nobody: dict, rows: slice) -> tuple[str, float, float, bool]:
    leaf, function = TERMS[name]
    given = {key: value[rows].clone() for key, value in inputs().items()}
    for key, value in nobody.items():
        given[key] = torch.full_like(given[key], value)
    given[leaf].requires_grad_()
    term = function(given)
    assert isinstance(term, Term)
    (gradient,) = torch.autograd.grad(term.loss, given[leaf])
    return name, term.loss.item(), term.count.item(), bool(gradient.any())


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(rank_results)


@pytest.mark.parametrize("name", TERMS)
def test_the_mean_over_ranks_is_the_whole_batchs_value_and_gradient(ranks, name):
    value, count, gradient = outcome(name, slice(None))
    torch.testing.assert_close(torch.stack([r[name][0] for r in ranks]).mean(), value, rtol=1e-10, atol=1e-13)
    assert [r[name][1] for r in ranks] == [count, count]
    # An engine averages gradients over ranks: each rank's own rows carry twice their share before that.
    gradients = torch.cat([r[name][2] for r in ranks]) / 2
    torch.testing.assert_close(gradients, gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["alignment", "discrepancy", "segmentation"])
def test_t2_a_rank_without_rows_meets_every_collective(ranks, name):
    """T2: one rank has no row, the other all of them; nobody hangs and the mean is still the whole batch's."""
    value, _, gradient = outcome(name, slice(None))
    torch.testing.assert_close(torch.stack([r["lonely"][name][0] for r in ranks]).mean(), value, rtol=1e-10, atol=0)
    torch.testing.assert_close(ranks[1]["lonely"][name][2] / 2, gradient, rtol=1e-9, atol=1e-13)


def test_t2_nobody_on_any_rank_is_zero_that_backward_can_follow(ranks):
    for rank in ranks:
        assert len(rank["nobody"]) == len(TERMS) - 1
        for name, *found in rank["nobody"]:
            assert found == [0.0, 0.0, False], name


def test_the_monitor_and_the_bank_are_the_same_on_every_rank(ranks):
    alone = AlignmentMonitor()
    alone.observe({"nct": inputs()["nct"]})
    for last, prototypes in (rank["state"] for rank in ranks):
        assert last == pytest.approx(alone.last)
        assert prototypes.tolist() == [[1, 0], [0, 1], [0, 1]]

"""Cross-entropy against soft targets, by blocks of rows, against the formula written out."""

import pytest
import torch

from fmct import row_blocks
from fmct.losses.soft_cross_entropy import soft_cross_entropy


def drawn(rows: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = (5 * torch.randn(rows, width, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    targets = torch.rand(rows, width, generator=generator, dtype=torch.float64)  # the rows do not sum to 1
    return logits, targets, torch.rand(rows, generator=generator, dtype=torch.float64)


def written_out(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, temperature: float) -> torch.Tensor:
    exponentials = (logits / temperature).exp()
    return -(weights[:, None] * targets * (exponentials / exponentials.sum(1, keepdim=True)).log()).sum()


@pytest.mark.parametrize("block", [1, 14, 10**9])
def test_value_and_gradient_are_those_of_the_formula_for_any_block(block, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK", block)
    logits, targets, weights = drawn(5, 7)
    got, wanted = soft_cross_entropy(logits, targets, weights, 0.2), written_out(logits, targets, weights, 0.2)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    (first,), (second,) = torch.autograd.grad(3 * got, logits), torch.autograd.grad(3 * wanted, logits)
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


def test_gradient_agrees_with_finite_differences():
    logits, targets, weights = drawn(3, 4)
    assert torch.autograd.gradcheck(lambda s: soft_cross_entropy(s, targets, weights, 0.5), (logits,))


def test_no_rows_give_zero_with_a_gradient_path():
    logits, targets, weights = drawn(0, 6)
    loss = soft_cross_entropy(logits, targets, weights, 0.1)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 6)


def test_half_precision_is_computed_in_fp32_and_its_gradient_given_back_in_half():
    logits, targets, weights = drawn(4, 64, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = soft_cross_entropy(logits, targets.float(), weights.float(), 0.1)
    assert loss.dtype == torch.float32
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    exact = written_out(logits.detach().double(), targets, weights, 0.1)
    torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-5, atol=0)


def test_logits_of_any_size_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_targets_get_no_gradient():
    logits, targets, weights = drawn(2, 3)
    targets.requires_grad_()
    soft_cross_entropy(logits, targets, weights, 1.0).backward()
    assert targets.grad is None


def test_blocks_cover_the_rows_in_order(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK", 20)
    rows = torch.arange(35).reshape(5, 7)
    assert torch.equal(torch.cat([rows[block] for block in row_blocks.row_blocks(rows)]), rows)
    assert [len(rows[block]) for block in row_blocks.row_blocks(rows)] == [2, 2, 1]
    assert not list(row_blocks.row_blocks(rows[:0]))

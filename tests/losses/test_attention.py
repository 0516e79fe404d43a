import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.attention import attention_loss


def lesion() -> torch.Tensor:
    mask = torch.zeros(2, 2, 3, 4)
    mask[0, 0, 1, 1:3] = 1
    mask[1, 1, 0, 0] = 1
    return mask


def test_s1_equal_is_zero_disjoint_is_one_and_the_gradient_draws_attention_in():
    """S1, as a gradient descends: attention rises inside the mask and falls outside."""
    mask = lesion()
    assert attention_loss(mask.flatten(1), mask).loss.item() == pytest.approx(0, abs=1e-7)
    assert attention_loss((1 - mask).flatten(1), mask).loss.item() == pytest.approx(1, abs=1e-6)
    attention = torch.full((2, 24), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention_loss(attention, mask).loss, attention)
    assert torch.equal(gradient < 0, mask.flatten(1) > 0)
    assert torch.equal(gradient > 0, mask.flatten(1) == 0)


def test_the_value_is_the_loops_mean_over_samples():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(3, 8, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.rand(3, 8, generator=generator, dtype=torch.float64)
    mask[2] = 0
    costs = [1 - 2 * (a @ m) / (a.sum() + m.sum()) for a, m in zip(attention[:2], mask, strict=False)]
    term = attention_loss(attention, mask)
    torch.testing.assert_close(term.loss, (costs[0] + costs[1] + attention[2].mean()) / 3, rtol=1e-5, atol=0)
    assert term.count.item() == 3
    quiet = attention_loss(attention, mask, negatives=False)
    torch.testing.assert_close(quiet.loss, (costs[0] + costs[1]) / 2, rtol=1e-5, atol=0)
    assert quiet.count.item() == 2
    assert torch.autograd.gradcheck(lambda a: attention_loss(a, mask).loss, (attention,))


def test_softmax_weights_are_measured_against_their_largest():
    mask = lesion().flatten(1)
    weights = mask / mask.sum(1, keepdim=True)
    assert attention_loss(weights, mask).loss.item() == pytest.approx(1 / 6, abs=1e-6)
    assert attention_loss(weights, mask, normalise=True).loss.item() == pytest.approx(0, abs=1e-6)


def test_unknown_samples_and_tokens_play_no_part():
    mask = lesion().flatten(1)
    attention = torch.rand(2, 24, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(2, 24)
    valid[0, 20:] = 0
    wild = attention.masked_fill(valid == 0, torch.nan).requires_grad_()
    known = torch.tensor([True, False])
    term = attention_loss(wild, mask, valid=valid, has_mask=known)
    torch.testing.assert_close(term.loss, attention_loss(attention[:1, :20], mask[:1, :20]).loss)
    (gradient,) = torch.autograd.grad(term.loss, wild)
    assert gradient.isfinite().all()
    assert not gradient[1].any()
    none = attention_loss(attention.requires_grad_(), mask, has_mask=torch.zeros(2))
    assert (none.loss.item(), none.count.item()) == (0.0, 0.0)
    assert not torch.autograd.grad(none.loss, attention)[0].any()


def test_maps_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="one size"):
        attention_loss(torch.zeros(2, 24), torch.zeros(2, 2, 3, 5))

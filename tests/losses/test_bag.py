import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.bag import bag_loss

NAN = float("nan")


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Crops of three patients; the third one's second target is unknown."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 2, generator=generator, dtype=dtype).requires_grad_()
    bags = torch.tensor([40, 7, 40, 7, 40, 12])
    of = {40: [1.0, 0.0], 7: [0.0, 1.0], 12: [1.0, NAN]}
    return logits, bags, torch.tensor([of[b] for b in bags.tolist()], dtype=dtype)


def loop(logits: Tensor, bags: Tensor, labels: Tensor, sharpness: float = 1.0, scores: Tensor | None = None) -> Tensor:
    costs = []
    for bag in sorted(set(bags.tolist())):
        rows = [i for i, b in enumerate(bags.tolist()) if b == bag]
        for t in range(logits.shape[1]):
            label = labels[rows[0], t]
            if math.isnan(label):
                continue
            if scores is None:
                pooled = sum(torch.exp(sharpness * logits[i, t]) for i in rows) / len(rows)
                pooled = torch.log(pooled) / sharpness
            else:
                total = sum(torch.exp(scores[i]) for i in rows)
                pooled = sum(torch.exp(scores[i]) / total * logits[i, t] for i in rows)
            costs.append(functional.binary_cross_entropy_with_logits(pooled, label))
    return torch.stack(costs).mean()


@pytest.mark.parametrize("sharpness", [1.0, 5.0])
def test_log_mean_exp_is_that_of_loops(sharpness):
    logits, bags, labels = inputs()
    term = bag_loss(logits, bags, labels, sharpness=sharpness)
    torch.testing.assert_close(term.loss, loop(logits, bags, labels, sharpness), rtol=1e-12, atol=0)
    assert term.count.item() == 5
    assert torch.autograd.gradcheck(lambda x: bag_loss(x, bags, labels, sharpness=sharpness).loss, (logits,))


def test_attention_is_that_of_loops():
    logits, bags, labels = inputs()
    scores = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    term = bag_loss(logits, bags, labels, attention=scores)
    torch.testing.assert_close(term.loss, loop(logits, bags, labels, scores=scores), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x, a: bag_loss(x, bags, labels, attention=a).loss, (logits, scores))


def test_only_members_take_part():
    logits, bags, labels = inputs()
    members = torch.tensor([True, True, False, True, True, False])
    term = bag_loss(logits, bags, labels, members=members)
    torch.testing.assert_close(term.loss, bag_loss(logits[members], bags[members], labels[members]).loss)
    assert not torch.autograd.grad(term.loss, logits)[0][~members].any()


def test_a_positive_bag_needs_one_positive_crop_only():
    bags, label = torch.zeros(3, dtype=torch.int64), torch.ones(3)
    quiet, one = torch.full((3, 1), -6.0), torch.tensor([[-6.0], [9.0], [-6.0]])
    assert bag_loss(one, bags, label).loss < 0.01
    assert bag_loss(quiet, bags, label).loss > 5


@pytest.mark.parametrize("attention", [None, torch.zeros(6)])
def test_nobody_is_zero_with_a_gradient_path_and_large_logits_stay_finite(attention):
    logits, bags, labels = inputs(torch.float32)
    none = bag_loss(logits, bags, labels, members=torch.zeros(6, dtype=torch.bool), attention=attention)
    assert (none.loss.item(), none.count.item()) == (0.0, 0.0)
    assert not torch.autograd.grad(none.loss, logits)[0].any()
    unknown = bag_loss(logits, bags, torch.full_like(labels, NAN), attention=attention)
    assert (unknown.loss.item(), unknown.count.item()) == (0.0, 0.0)
    assert not torch.autograd.grad(unknown.loss, logits)[0].any()
    assert bag_loss(1e4 * logits, bags, labels, attention=attention).loss.isfinite()


def test_shapes_that_do_not_fit_are_refused():
    logits, bags, labels = inputs()
    with pytest.raises(ConfigError, match="bags: expected logits"):
        bag_loss(logits, bags[:5], labels)
    with pytest.raises(ConfigError, match="attention score"):
        bag_loss(logits, bags, labels, attention=torch.zeros(5))
    with pytest.raises(ConfigError, match="sharpness"):
        bag_loss(logits, bags, labels, sharpness=0)

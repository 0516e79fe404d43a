import pytest
import torch
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.classification import binary_loss

NAN = float("nan")


def test_t4_the_mean_runs_over_known_labels_only():
    """T4: unknown is NaN in fmct's tables and −1 in the definition; neither contributes."""
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.3], [1.0, 7.0]], requires_grad=True)
    labels = torch.tensor([[1.0, NAN], [0.0, 1.0], [-1.0, NAN]])
    term = binary_loss(logits, labels)
    cost = functional.binary_cross_entropy_with_logits
    wanted = (cost(logits[0, 0], torch.tensor(1.0)) + cost(logits[1], labels[1], reduction="sum")) / 3
    torch.testing.assert_close(term.loss, wanted)
    assert term.count.item() == 3
    (gradient,) = torch.autograd.grad(term.loss, logits)
    assert torch.equal(gradient != 0, torch.tensor([[True, False], [True, True], [False, False]]))


def test_batch_composition_does_not_change_the_scale():
    logits, labels = torch.randn(3, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.0, 1.0])
    padded = torch.cat([logits, torch.full((5, 1), torch.inf)]), torch.cat([labels, torch.full((5,), NAN)])
    torch.testing.assert_close(binary_loss(*padded).loss, binary_loss(logits, labels).loss)


def test_nothing_known_is_zero_with_a_gradient_path():
    logits = torch.randn(2, 3, requires_grad=True)
    term = binary_loss(logits, torch.full((2, 3), NAN))
    term.loss.backward()
    assert (term.loss.item(), term.count.item()) == (0.0, 0.0)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_gradcheck_and_positive_weight():
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[1, 0], [0, NAN], [NAN, 1], [1, 1]], dtype=torch.float64)
    weight = torch.tensor([3.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: binary_loss(x, labels, pos_weight=weight).loss, (logits,))
    ones = torch.ones(4, 1, dtype=torch.float64)
    torch.testing.assert_close(
        binary_loss(logits[:, :1], ones, pos_weight=weight[:1]).loss, 3 * binary_loss(logits[:, :1], ones).loss
    )


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="one shape"):
        binary_loss(torch.zeros(2, 3), torch.zeros(2))

import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.term import Term, flags, mean_term, no_contribution, pooled


def test_a_mean_takes_contributors_only_whatever_the_others_hold():
    values = torch.tensor([1.0, 4.0, torch.nan], requires_grad=True)
    term = mean_term(values, torch.tensor([0.25, 0.5, 0.0]))
    assert (term.loss.item(), term.count.item()) == (3.0, 2.0)
    term.loss.backward()
    torch.testing.assert_close(values.grad, torch.tensor([1 / 3, 2 / 3, 0.0]))


def test_nobody_contributes_zero_with_a_gradient_path():
    values = torch.tensor([1.0, torch.inf], requires_grad=True)
    term = mean_term(values, torch.zeros(2))
    assert (term.loss.item(), term.count.item()) == (0.0, 0.0)
    term.loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 0.0]


def test_no_contribution_reaches_every_tensor_and_ignores_what_it_holds():
    a, b = torch.full((2, 3), torch.nan, requires_grad=True), torch.ones(0, 4, requires_grad=True)
    zero = no_contribution(a, b)
    assert zero.item() == 0.0
    zero.backward()
    assert a.grad is not None
    assert b.grad is not None
    assert not a.grad.any()


def test_terms_pool_by_their_counts():
    one = Term(torch.tensor(2.0, requires_grad=True), torch.tensor(3.0))
    other, none = Term(torch.tensor(6.0), torch.tensor(1.0)), Term(torch.tensor(0.0), torch.tensor(0.0))
    together = pooled([one, other, none])
    assert (together.loss.item(), together.count.item()) == (3.0, 4.0)
    assert pooled([none, none]).loss.item() == 0.0
    with pytest.raises(ConfigError, match="at least one"):
        pooled([])


def test_flags_of_another_length_are_refused():
    assert flags(None, 2, torch.zeros(1)).tolist() == [True, True]
    with pytest.raises(ConfigError, match=r"\(2,\).*\(3,\)"):
        flags(torch.ones(3), 2, torch.zeros(1))

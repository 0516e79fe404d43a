"""Acceptance checks A1 to A12 of the alignment between phases, and both of its terms against loops."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from fmct.errors import ConfigError
from fmct.losses.alignment import inter_feature_alignment
from fmct.losses.term import Term
from tests.losses import references_downstream as slow

SHAPE = (3, 5, 2, 3, 3)


def fields(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    nct, ctpa = (torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    return nct, ctpa


def maps(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    grid = (SHAPE[0], 1, *SHAPE[2:])
    return {
        "valid": torch.rand(grid, generator=generator, dtype=torch.float64) + 0.2,
        "foreground": torch.rand(grid, generator=generator, dtype=torch.float64),
        "pair_weight": torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64),
    }


def gradients(term: Term, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(term.loss, leaves))


def one_token(*features: list[float]) -> list[Tensor]:
    return [torch.tensor(f, dtype=torch.float64).view(1, -1, 1, 1, 1).requires_grad_() for f in features]


@pytest.mark.parametrize("reach", [1, 2])
@pytest.mark.parametrize(("gamma", "kappa"), [(4.0, 1.0), (0.0, 0.3)])
def test_value_and_gradient_are_those_of_loops(reach, gamma, kappa):
    (nct, ctpa), given = fields(), maps()
    fast = inter_feature_alignment(nct, ctpa, **given, gamma=gamma, kappa=kappa, reach=reach)
    weight = given["pair_weight"]
    expected = slow.position(nct, ctpa, given["valid"], given["foreground"], weight, gamma)
    expected = expected + kappa * slow.contiguity(nct, ctpa, given["valid"], weight, reach)
    torch.testing.assert_close(fast.loss, expected, rtol=1e-12, atol=0)
    assert fast.count.item() == 2
    wanted = torch.autograd.grad(expected, (nct, ctpa))
    for got, want in zip(gradients(fast, nct, ctpa), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"contiguity": "nonlocal", "samples": 6}, {"tolerance": 1}])
def test_gradcheck(options):
    nct, ctpa = fields(shape=(2, 3, 2, 2, 2))
    assert torch.autograd.gradcheck(lambda n, c: inter_feature_alignment(n, c, **options).loss, (nct, ctpa))


def test_nonlocal_contiguity_is_that_of_all_pairs_when_all_tokens_are_drawn():
    (nct, ctpa), given = fields(), maps()
    options: dict[str, Any] = {"contiguity": "nonlocal", "gamma": 4.0}
    fast = inter_feature_alignment(nct, ctpa, **given, **options)
    weight = given["pair_weight"]
    expected = slow.position(nct, ctpa, given["valid"], given["foreground"], weight, 4.0)
    torch.testing.assert_close(
        fast.loss, expected + slow.contiguity(nct, ctpa, given["valid"], weight, torch.inf), rtol=1e-12, atol=0
    )
    few = [inter_feature_alignment(nct, ctpa, **given, **options, samples=4, seed=s).loss for s in (0, 0, 1)]
    assert few[0] == few[1]
    assert few[0] != few[2]


def test_nonlocal_samples_follow_a_sample_through_the_batch():
    nct, ctpa = fields()
    turned = torch.tensor([2, 0, 1])
    options: dict[str, Any] = {"contiguity": "nonlocal", "samples": 5}
    first = inter_feature_alignment(nct, ctpa, **options, seed=[7, 8, 9])
    second = inter_feature_alignment(nct[turned], ctpa[turned], **options, seed=torch.tensor([9, 7, 8]))
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"tolerance": 1}, {"contiguity": "nonlocal"}])
def test_a1_equal_fields_cost_nothing_and_pull_nowhere(options):
    nct = fields(dtype=torch.float32)[0]
    ctpa = nct.detach().clone().requires_grad_()
    term = inter_feature_alignment(nct, ctpa, **options)
    assert abs(term.loss.item()) <= 1e-6
    assert max(g.abs().max().item() for g in gradients(term, nct, ctpa)) <= 1e-6


def test_a2_orthogonal_is_one_opposite_is_two_and_never_beyond():
    u, across, against = one_token([1, 0], [0, 1], [-1, 0])
    assert inter_feature_alignment(u, across).loss.item() == 1.0
    assert inter_feature_alignment(u, against).loss.item() == 2.0
    for seed in range(5):
        assert 0 <= inter_feature_alignment(*fields(seed), kappa=0.0).loss.item() <= 2


def test_a3_the_gradient_is_the_closed_form_and_a_step_along_it_helps():
    u, w = one_token([1, 0], [0, 1])
    assert gradients(inter_feature_alignment(u, w), u)[0].flatten().tolist() == [0, -1]
    u, w = one_token([1.0, 2.0, -0.5], [0.3, -1.0, 2.0])
    term = inter_feature_alignment(u, w)
    (gradient,) = gradients(term, u)
    a, b = u.detach().flatten(), w.detach().flatten()
    cosine = a @ b / (a.norm() * b.norm())
    torch.testing.assert_close(gradient.flatten(), -(b / b.norm() - cosine * a / a.norm()) / a.norm())
    assert abs(gradient.flatten() @ a) < 1e-12
    assert inter_feature_alignment(u - 0.01 * gradient, w).loss < term.loss


def test_a4_positive_scales_of_each_phase_play_no_part():
    (nct, ctpa), given = fields(), maps()
    term = inter_feature_alignment(nct, ctpa, **given)
    scaled = inter_feature_alignment(0.01 * nct, 250 * ctpa, **given)
    torch.testing.assert_close(scaled.loss, term.loss, rtol=1e-9, atol=0)


def test_a5_one_permutation_of_both_phases_changes_nothing_and_of_one_raises():
    (nct, ctpa), given = fields(), maps()
    order = torch.randperm(18, generator=torch.Generator().manual_seed(3))

    def permuted(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].view_as(x)

    same = inter_feature_alignment(nct, ctpa, **given, kappa=0.0)
    both = {name: permuted(x) if x.ndim == 5 else x for name, x in given.items()}
    after = inter_feature_alignment(permuted(nct), permuted(ctpa), **both, kappa=0.0)
    torch.testing.assert_close(after.loss, same.loss)
    assert inter_feature_alignment(nct, permuted(nct), kappa=0.0).loss > 0.1


def test_a6_contiguity_does_not_see_a_rotation_of_each_phases_channels():
    nct, ctpa = fields()
    generator = torch.Generator().manual_seed(4)
    turns = [torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
    rotated = [torch.einsum("ck,bkzyx->bczyx", turn, x) for turn, x in zip(turns, (nct, ctpa), strict=True)]

    def terms(n: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        position = inter_feature_alignment(n, c, kappa=0.0).loss
        return position, inter_feature_alignment(n, c).loss - position

    before, after = terms(nct, ctpa), terms(*rotated)
    torch.testing.assert_close(after[1], before[1])
    assert abs(after[0] - before[0]) > 1e-3


@pytest.mark.parametrize("tolerance", [0, 1])
def test_a7_the_mode_decides_who_moves_and_not_the_value(tolerance):
    values, moved = [], {}
    for mode in ("mutual", "to_nct", "to_ctpa"):
        nct, ctpa = fields()
        term = inter_feature_alignment(nct, ctpa, mode=mode, tolerance=tolerance)
        term.loss.backward()
        values.append(term.loss.item())
        moved[mode] = (nct.grad, ctpa.grad)
    assert values[0] == values[1] == values[2]
    assert moved["to_nct"][1] is None
    assert moved["to_ctpa"][0] is None
    # Nothing is doubled or halved: mutual is each pathway's own one-way gradient.
    torch.testing.assert_close(moved["mutual"][0], moved["to_nct"][0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(moved["mutual"][1], moved["to_ctpa"][1], rtol=1e-12, atol=1e-15)
    assert moved["to_nct"][0].abs().max() > 0
    assert moved["to_ctpa"][1].abs().max() > 0


def test_a8_the_phases_may_change_places():
    (nct, ctpa), given = fields(), maps()
    torch.testing.assert_close(
        inter_feature_alignment(nct, ctpa, **given).loss, inter_feature_alignment(ctpa, nct, **given).loss
    )


@pytest.mark.parametrize("options", [{}, {"tolerance": 1}, {"contiguity": "nonlocal", "samples": 8}])
def test_a9_invalid_tokens_have_no_influence_whatever_they_hold(options):
    (nct, ctpa), given = fields(), maps()
    outside = given["valid"] < 0.5
    assert outside.any()
    first = inter_feature_alignment(nct, ctpa, **given, **options)
    wild = [x.detach().masked_fill(outside, torch.nan).requires_grad_() for x in (nct, ctpa)]
    second = inter_feature_alignment(*wild, **given, **options)
    assert first.loss.item() == second.loss.item()
    for got, want in zip(gradients(second, *wild), gradients(first, nct, ctpa), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert not got.masked_select(outside).any()


def test_a10_zero_vectors_are_finite_and_autocast_is_left():
    nct, ctpa = fields(dtype=torch.float32)
    with torch.no_grad():
        nct[0], ctpa[0, :, 0] = 0.0, 0.0
    term = inter_feature_alignment(nct, ctpa)
    assert all(g.isfinite().all() for g in gradients(term, nct, ctpa))
    for options in ({}, {"contiguity": "nonlocal"}):
        exact = inter_feature_alignment(nct, ctpa, **options).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(inter_feature_alignment(nct, ctpa, **options).loss, exact)
            rough = inter_feature_alignment(nct.bfloat16(), ctpa.bfloat16(), **options).loss
        assert rough.dtype == torch.float32
        assert abs(rough - exact) < 2e-2


def test_a11_a_batch_is_its_pairs_and_weights_are_relative():
    nct, ctpa = fields(shape=(4, 5, 2, 3, 3))
    pairs = torch.tensor([True, False, True, False])
    with torch.no_grad():
        ctpa[~pairs] = torch.nan
    whole = inter_feature_alignment(nct, ctpa, has_pair=pairs)
    alone = inter_feature_alignment(nct[pairs], ctpa[pairs])
    torch.testing.assert_close(whole.loss, alone.loss, rtol=1e-12, atol=0)
    assert whole.count.item() == alone.count.item() == 2
    weighted = inter_feature_alignment(nct, ctpa, pair_weight=pairs * 0.3)
    torch.testing.assert_close(weighted.loss, alone.loss, rtol=1e-6, atol=0)
    weights = torch.tensor([1.0, 0.6])
    values = [inter_feature_alignment(nct[pairs], ctpa[pairs], pair_weight=w).loss for w in (weights, 2 * weights)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=0)


def test_a12_tolerance_forgives_a_shift_of_one_token_inside():
    generator = torch.Generator().manual_seed(5)
    field = torch.randn(1, 8, 5, 5, 5, generator=generator, dtype=torch.float64)
    shifted = field.roll(1, dims=2)
    inside = torch.zeros(1, 5, 5, 5)
    inside[:, 1:4, 1:4, 1:4] = 1  # every token here has its partner among the valid ones
    assert inter_feature_alignment(shifted, field).loss > 0.1
    # Foreground alone is weighed, the rest has weight 1: with all else equal, only the inside is looked at.
    strict = inter_feature_alignment(shifted, field, foreground=inside, gamma=1e9, kappa=0.0)
    tolerant = inter_feature_alignment(shifted, field, foreground=inside, gamma=1e9, kappa=0.0, tolerance=1)
    assert strict.loss > 0.5
    assert tolerant.loss.item() < 1e-8
    assert abs(inter_feature_alignment(field, field, tolerance=1).loss.item()) < 1e-12


def test_tolerance_takes_the_best_valid_neighbour_of_a_loop():
    (nct, ctpa), given = fields(), maps()
    valid = given["valid"]
    ours, theirs = nct.detach(), ctpa.detach()
    matched = theirs.clone()
    for b in range(len(nct)):
        for place in slow.places(SHAPE[2:]):
            near = [
                p
                for p in slow.places(SHAPE[2:])
                if max(abs(i - j) for i, j in zip(p, place, strict=True)) <= 1 and valid[(b, 0, *p)] >= 0.5
            ]
            if near:
                here = slow.unit(ours[(b, slice(None), *place)])
                cosines = [float(here @ slow.unit(theirs[(b, slice(None), *p)])) for p in near]
                best = near[cosines.index(max(cosines))]
                matched[(b, slice(None), *place)] = theirs[(b, slice(None), *best)]
    tolerant = inter_feature_alignment(nct, ctpa, **given, tolerance=1)
    torch.testing.assert_close(tolerant.loss, inter_feature_alignment(nct, matched, **given).loss)


def test_t2_no_pair_gives_zero_that_backward_can_follow():
    """T2, also with no row at all."""
    nct, ctpa = fields()
    for n, c, flag in ((nct, ctpa, torch.zeros(3, dtype=torch.bool)), (nct[:0], ctpa[:0], None)):
        for options in ({}, {"tolerance": 1}, {"contiguity": "nonlocal"}):
            term = inter_feature_alignment(n, c, has_pair=flag, **options)
            assert (term.loss.item(), term.count.item()) == (0.0, 0.0)
            assert all(not g.any() for g in gradients(term, nct, ctpa))


def test_the_fixed_signature_comes_first():
    names = ["nct", "ctpa", "valid", "foreground", "has_pair", "pair_weight", "mode", "gamma", "kappa", "tolerance"]
    parameters = inspect.signature(inter_feature_alignment).parameters
    assert list(parameters)[: len(names)] == names
    assert [parameters[n].default for n in names[2:]] == [None, None, None, None, "mutual", 4.0, 1.0, 0]


def test_what_does_not_fit_is_refused():
    nct, ctpa = fields()
    with pytest.raises(ConfigError, match="same places"):
        inter_feature_alignment(nct, ctpa[:2])
    with pytest.raises(ConfigError, match="to_nct"):
        inter_feature_alignment(nct, ctpa, mode="both")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nonlocal"):
        inter_feature_alignment(nct, ctpa, contiguity="far")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reach"):
        inter_feature_alignment(nct, ctpa, reach=0)
    with pytest.raises(ConfigError, match="pair_weight"):
        inter_feature_alignment(nct, ctpa, pair_weight=torch.ones(2))

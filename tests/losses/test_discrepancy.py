"""Acceptance checks D1 to D9 of the discrepancy within a phase, and its value against loops."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from fmct.errors import ConfigError
from fmct.losses.discrepancy import intra_feature_discrepancy
from fmct.losses.foreground_bank import ForegroundBank
from fmct.losses.term import Term
from tests.losses import references_downstream as slow

SHAPE = (3, 6, 4, 5, 6)
SPACING = (5.0, 4.0, 3.0)


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return features and lesion shares: two lesions of different shape, and a third sample without; and valid."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(SHAPE, generator=generator, dtype=dtype).requires_grad_()
    share = torch.zeros(SHAPE[0], 1, *SHAPE[2:], dtype=dtype)
    share[0, 0, 1, 1:3, 1] = torch.tensor([0.6, 1.0], dtype=dtype)
    share[0, 0, 2, 1, 1] = 0.1
    share[1, 0, 0, 0, 0] = 0.3
    valid = torch.ones(SHAPE[0], 1, *SHAPE[2:], dtype=dtype)
    valid[0, 0, 3, 3:] = 0.2
    return features, share, valid


def line(*features: list[float], share: list[float], spacing: float = 4.0, **options: Any) -> tuple[Term, Tensor]:
    """Return the term of tokens in a row, `spacing` mm apart, and their features (1, C, 1, 1, n)."""
    rows = torch.tensor(features, dtype=torch.float64).T[None, :, None, None].contiguous().requires_grad_()
    shares = torch.tensor(share, dtype=torch.float64).view(1, 1, 1, 1, -1)
    return intra_feature_discrepancy(rows, shares, spacing_mm=(spacing,) * 3, **options), rows


def gradient(term: Term, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(term.loss, leaf)[0]


def expected(features: Tensor, share: Tensor, valid: Tensor, samples: list[int], *, margin: float = 0.0) -> Tensor:
    """The loops' mean over some samples, with all of Q taken."""
    found = []
    for b in samples:
        foreground, near, far = slow.sets(share[b, 0], valid[b, 0], SPACING, 0.25, (3.0, 15.0))
        found.append(slow.discrepancy(features[b], share[b, 0], foreground, near + far, 0.5, margin))
    return torch.stack(found).mean()


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_value_and_gradient_are_those_of_loops(margin):
    features, share, valid = inputs()
    fast = intra_feature_discrepancy(features, share, spacing_mm=SPACING, valid=valid, samples=1000, margin=margin)
    loops = expected(features, share, valid, [0, 1], margin=margin)
    torch.testing.assert_close(fast.loss, loops, rtol=1e-12, atol=0)
    assert fast.count.item() == 2
    torch.testing.assert_close(gradient(fast, features), torch.autograd.grad(loops, features)[0], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", ["push-pull", "infonce"])
def test_gradcheck(kind):
    share = torch.zeros(1, 1, 1, 2, 4, dtype=torch.float64)
    share[0, 0, 0, 0, :2] = torch.tensor([0.4, 0.9])
    features = torch.randn(1, 3, 1, 2, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda f: intra_feature_discrepancy(f, share, spacing_mm=(4, 4, 4), kind=kind).loss,
        (features.requires_grad_(),),
    )


def test_infonce_is_that_of_loops():
    features, share, valid = inputs()
    fast = intra_feature_discrepancy(
        features, share, spacing_mm=SPACING, valid=valid, samples=1000, kind="infonce", temperature=0.3
    )
    loops = []
    for b in (0, 1):
        foreground, near, far = slow.sets(share[b, 0], valid[b, 0], SPACING, 0.25, (3.0, 15.0))
        loops.append(slow.infonce(features[b], share[b, 0], foreground, near + far, 0.3))
    torch.testing.assert_close(fast.loss, torch.stack(loops).mean(), rtol=1e-10, atol=0)


def test_infonce_bounds_its_positives():
    features = torch.randn(1, 4, 1, 1, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    share = torch.zeros(1, 1, 1, 1, 12)
    share[..., :8] = 1.0
    options: dict[str, Any] = {"spacing_mm": (4, 4, 4), "kind": "infonce"}
    few = [intra_feature_discrepancy(features, share, **options, samples=4, seed=s).loss for s in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert few[0] != intra_feature_discrepancy(features, share, **options, samples=16).loss


def test_d1_push_of_one_lesion_and_one_background_token():
    half = 3**0.5 / 2
    for background, wanted in (([1, 0], 1.0), ([0, 1], 0.0), ([-1, 0], 0.0), ([0.5, half], 0.25)):
        term, _ = line([1, 0], background, share=[1, 0])
        assert term.loss.item() == pytest.approx(wanted, abs=1e-12)
        assert term.count.item() == 1


def test_d2_pull_is_zero_for_equal_lesion_tokens_and_rises_with_an_opposite_one():
    equal, _ = line([0, 1], [0, 2], [1, 0], share=[1, 0.5, 0])
    assert equal.loss.item() == pytest.approx(0, abs=1e-12)
    opposed, _ = line([0, 1], [0, 2], [0, -1], [1, 0], share=[1, 0.5, 1, 0])
    assert opposed.loss.item() > 0.1


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_d3_a_step_parts_lesion_and_background_until_the_margin(margin):
    term, rows = line([1, 0.2], [1, 0.9], share=[1, 0], margin=margin)
    step = rows - 0.1 * gradient(term, rows)
    before, after = (torch.cosine_similarity(r[0, :, 0, 0, 0], r[0, :, 0, 0, 1], dim=0) for r in (rows, step))
    assert after < before
    term, rows = line([1, 0], [margin - 0.01, 1], share=[1, 0], margin=margin)
    assert term.loss.item() == 0
    assert not gradient(term, rows).any()


def test_d4_no_lesion_or_no_mask_is_nothing_and_does_not_dilute():
    features, share, valid = inputs()
    options: dict[str, Any] = {"spacing_mm": SPACING, "valid": valid}
    none = intra_feature_discrepancy(features, torch.zeros_like(share), **options)
    unknown = intra_feature_discrepancy(features, share, has_mask=torch.zeros(3, dtype=torch.bool), **options)
    for term in (none, unknown):
        assert (term.loss.item(), term.count.item()) == (0.0, 0.0)
        assert not gradient(term, features).any()
    known = torch.tensor([True, False, True])
    mixed = intra_feature_discrepancy(features, share, has_mask=known, **options)
    alone = intra_feature_discrepancy(features[:1], share[:1], spacing_mm=SPACING, valid=valid[:1])
    assert mixed.loss.item() == alone.loss.item()
    assert mixed.count.item() == 1


def test_t2_no_rows_at_all():
    features, share, _ = inputs()
    term = intra_feature_discrepancy(features[:0], share[:0], spacing_mm=SPACING)
    assert (term.loss.item(), term.count.item()) == (0.0, 0.0)
    assert not gradient(term, features).any()


def test_d5_lesion_everywhere_leaves_nothing_to_compare():
    term, rows = line([1, 0], [0, 1], share=[1, 0.5])
    assert (term.loss.item(), term.count.item()) == (0.0, 0.0)
    assert not gradient(term, rows).any()


def test_d6_partial_tokens_and_the_band_of_registration_error_have_no_influence():
    # 1 mm apart: lesion, partial, then tokens at 1 and 2 mm from the partial one (left out), then 3 mm and beyond.
    share = [1, 0.1, 0, 0, 0, 0]
    first, rows = line(*[[1.0, 0.1 * i] for i in range(6)], share=share, spacing=1.0)
    assert gradient(first, rows)[0, :, 0, 0].abs().sum(0).gt(0).tolist() == [True, False, False, False, True, True]
    changed = [[1.0, 0.1 * i] if i in (0, 4, 5) else [-7.0, 3.0 + i] for i in range(6)]
    second, _ = line(*changed, share=share, spacing=1.0)
    assert first.loss.item() == second.loss.item()


def test_d6_a_lesion_smaller_than_a_token_is_one_token():
    term, rows = line([1, 0], [1, 1], [1, 0], share=[0.02, 0.01, 0])
    assert term.loss.item() == pytest.approx(1.0)  # the first alone against the third
    assert term.count.item() == 1
    assert not gradient(term, rows)[..., 1].any()


def test_the_ring_is_measured_in_millimetres_on_an_anisotropic_grid():
    features, share, valid = inputs()
    share = torch.zeros_like(share)
    share[:, 0, 0, 2, 2] = 1
    spacing = torch.tensor([[2.0, 10.0, 16.0]]).expand(3, 3)
    foreground, near, far = slow.sets(share[0, 0], valid[1, 0], (2.0, 10.0, 16.0), 0.25, (3.0, 15.0))
    assert near
    assert far
    # Two samples of Q: one from the ring, one from elsewhere.
    seen: set[str] = set()
    for seed in range(6):
        term = intra_feature_discrepancy(features[:1], share[:1], spacing_mm=spacing[:1], samples=2, seed=seed)
        moved = gradient(term, features)[0].abs().sum(0).nonzero().tolist()
        touched = {tuple(p) for p in moved} - set(foreground)
        assert touched <= set(near) | set(far)
        seen |= {"near" if p in near else "far" for p in touched}
        assert len(touched & set(near)) <= 1
        assert len(touched & set(far)) <= 1
    assert seen == {"near", "far"}


def test_hard_background_may_be_given_and_fills_its_own_half():
    rows = [[1.0, 0.0], [0.5, 1.0], [1.0, 0.5], [1.0, 0.9]]
    share, spacing = [1, 0, 0, 0], 20.0  # nothing within 15 mm: no token is hard by distance
    organ = torch.tensor([0, 0, 1.0, 0]).view(1, 1, 1, 1, -1)
    without, _ = line(*rows, share=share, spacing=spacing, samples=2)
    term, leaf = line(*rows, share=share, spacing=spacing, samples=2, hard=organ)
    moved = gradient(term, leaf)[0, :, 0, 0].abs().sum(0) > 0
    assert moved[2]
    assert moved[[1, 3]].sum() == 1
    assert term.loss.item() != without.loss.item()


def test_d7_scale_rotation_order_and_seed():
    features, share, valid = inputs()
    options: dict[str, Any] = {"spacing_mm": SPACING, "samples": 8}
    seeds = [4, 5, 6]
    first = intra_feature_discrepancy(features, share, valid=valid, seed=seeds, **options).loss
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    turned = torch.einsum("ck,bkzyx->bczyx", rotation, 37 * features)
    torch.testing.assert_close(
        intra_feature_discrepancy(turned, share, valid=valid, seed=seeds, **options).loss, first, rtol=1e-10, atol=0
    )
    assert intra_feature_discrepancy(features, share, valid=valid, seed=seeds, **options).loss == first
    assert intra_feature_discrepancy(features, share, valid=valid, seed=[5, 4, 6], **options).loss != first
    # A sample takes its draw with it, wherever it stands in the batch and whoever stands beside it.
    order = [2, 0, 1]
    moved = intra_feature_discrepancy(
        features[order], share[order], valid=valid[order], seed=torch.tensor([6, 4, 5]), **options
    )
    torch.testing.assert_close(moved.loss, first, rtol=1e-12, atol=0)
    alone = [
        intra_feature_discrepancy(features[[b]], share[[b]], valid=valid[[b]], seed=seeds[b], **options).loss
        for b in (0, 1)
    ]
    torch.testing.assert_close(torch.stack(alone).mean(), first, rtol=1e-12, atol=0)


def test_d7_background_tokens_may_change_places():
    features, share, valid = inputs()
    _, near, far = slow.sets(share[0, 0], valid[0, 0], SPACING, 0.25, (3.0, 15.0))
    places = near + far
    shuffled = features.detach().clone()
    for old, new in zip(places, places[5:] + places[:5], strict=True):
        shuffled[(0, slice(None), *new)] = features.detach()[(0, slice(None), *old)]
    options: dict[str, Any] = {"spacing_mm": SPACING, "valid": valid, "samples": 1000}
    torch.testing.assert_close(
        intra_feature_discrepancy(shuffled, share, **options).loss,
        intra_feature_discrepancy(features, share, **options).loss,
    )


def test_d8_a_phase_sees_its_own_features_only():
    """D8: the NCT's term has no gradient to the CTPA's features, which enter a call of their own."""
    nct, share, valid = inputs(0)
    ctpa = inputs(1)[0]
    options: dict[str, Any] = {"spacing_mm": SPACING, "valid": valid}
    first = intra_feature_discrepancy(nct, share, **options)
    other = intra_feature_discrepancy(ctpa * 3 + 1, share, **options)
    assert torch.autograd.grad(first.loss, ctpa, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(other.loss, nct, allow_unused=True)[0] is None
    assert intra_feature_discrepancy(nct, share, **options).loss == first.loss != other.loss


def test_d9_two_kinds_of_background_are_not_drawn_together():
    rows = [[1.0, 0, 0], [1.0, 0, 0.5], [0, 1.0, 0], [0, -1.0, 0], [0, 1.0, 0]]
    term, leaf = line(*rows, share=[1, 1, 0, 0, 0])
    a, b = torch.tensor(rows[0]), torch.tensor(rows[1]) / 1.25**0.5
    middle = (a + b) / (a + b).norm()
    pull = (1 - a @ middle + 1 - b @ middle) / 2
    assert term.loss.item() == pytest.approx(0.5 * pull.item(), rel=1e-5)
    assert not gradient(term, leaf)[..., 2:].any()


def test_a_bank_lets_samples_without_lesion_contribute():
    features, share, valid = inputs(dtype=torch.float32)
    bank = ForegroundBank(6, size=4)
    options: dict[str, Any] = {"spacing_mm": SPACING, "valid": valid, "bank": bank}
    assert intra_feature_discrepancy(features, share, **options).count.item() == 2  # still empty
    bank.apply()
    assert len(bank.prototypes()) == 2
    term = intra_feature_discrepancy(features, share, **options)
    assert term.count.item() == 3
    assert gradient(term, features)[2].any()
    known = torch.tensor([True, True, False])
    assert intra_feature_discrepancy(features, share, has_mask=known, **options).count.item() == 2
    empty = intra_feature_discrepancy(features[2:], share[2:], spacing_mm=SPACING, bank=bank, samples=1000)
    unit = torch.nn.functional.normalize(features[2].flatten(1), dim=0)
    torch.testing.assert_close(empty.loss, (bank.prototypes() @ unit).clamp(min=0).square().mean())


def test_autocast_is_left():
    features, share, valid = inputs(dtype=torch.float32)
    exact = intra_feature_discrepancy(features, share, spacing_mm=SPACING, valid=valid).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(intra_feature_discrepancy(features, share, spacing_mm=SPACING, valid=valid).loss, exact)
        rough = intra_feature_discrepancy(features.bfloat16(), share, spacing_mm=SPACING, valid=valid).loss
    assert rough.dtype == torch.float32
    assert abs(rough - exact) < 2e-2


def test_the_fixed_signature_comes_first_and_what_does_not_fit_is_refused():
    names = ["features", "mask_fraction", "spacing_mm", "valid", "has_mask", "seed"]
    parameters = inspect.signature(intra_feature_discrepancy).parameters
    assert list(parameters)[: len(names)] == names
    assert [parameters[n].default for n in names[3:]] == [None, None, 0]
    features, share, _ = inputs()
    for match, changed in (
        ("infonce", {"kind": "other"}),
        ("ring_mm", {"ring_mm": (5, 3)}),
        ("samples", {"samples": 1}),
        ("mask_fraction", {"mask_fraction": share[..., :-1]}),
    ):
        with pytest.raises(ConfigError, match=match):
            intra_feature_discrepancy(**{"features": features, "mask_fraction": share, "spacing_mm": SPACING} | changed)  # type: ignore[arg-type]

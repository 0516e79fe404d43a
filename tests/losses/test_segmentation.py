import pytest
import torch
from monai.losses.dice import DiceLoss
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.segmentation import segmentation_loss


def inputs(outputs: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (4, outputs, 3, 4, 5)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    target = (torch.rand(shape, generator=generator) < 0.3).double()
    valid = (torch.rand(4, 1, 3, 4, 5, generator=generator) < 0.8).double()
    return logits, target, valid


@pytest.mark.parametrize("outputs", [1, 3])
def test_both_parts_are_monais_and_torchs_on_the_rows_with_a_mask(outputs):
    logits, target, valid = inputs(outputs)
    has_mask = torch.tensor([True, True, False, True])
    rows = has_mask.nonzero().flatten()
    term = segmentation_loss(logits, target, valid=valid, has_mask=has_mask)
    dice = DiceLoss(sigmoid=False, batch=True)(logits[rows].sigmoid() * valid[rows], target[rows] * valid[rows])
    entropy = functional.binary_cross_entropy_with_logits(logits[rows], target[rows], reduction="none")
    weight = valid[rows].expand_as(entropy)
    torch.testing.assert_close(term.loss, dice + (entropy * weight).sum() / weight.sum(), rtol=1e-9, atol=0)
    assert term.count.item() == 3


def test_dice_alone_is_monais_where_the_rest_is_surely_outside():
    logits, target, valid = inputs()
    term = segmentation_loss(logits, target[:, 0], valid=valid[:, 0], cross_entropy=0.0)
    outside = logits.masked_fill(valid == 0, -40.0)
    wanted = DiceLoss(sigmoid=True, batch=True)(outside, target * valid)
    torch.testing.assert_close(term.loss, wanted, rtol=1e-9, atol=0)


def test_gradcheck():
    logits, target, valid = inputs(outputs=2)
    has_mask = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(
        lambda x: segmentation_loss(x, target, valid=valid, has_mask=has_mask).loss, (logits,)
    )


def test_a_share_of_lesion_is_met_best_by_itself():
    target = torch.tensor([0.0, 0.3, 0.8, 1.0]).view(1, 1, 1, 4).double()
    logits = torch.logit(target[:, None].clamp(1e-9, 1 - 1e-9))
    best = segmentation_loss(logits, target, cross_entropy=0.0).loss
    assert best.item() == pytest.approx(0, abs=1e-5)
    for shift in (-0.5, 0.5):
        assert segmentation_loss(logits + shift, target).loss > segmentation_loss(logits, target).loss


def test_t4_no_mask_contributes_nothing_and_a_verified_negative_does():
    logits, target, valid = inputs()
    unknown = segmentation_loss(logits, target, valid=valid, has_mask=torch.zeros(4, dtype=torch.bool))
    assert (unknown.loss.item(), unknown.count.item()) == (0.0, 0.0)
    assert not torch.autograd.grad(unknown.loss, logits)[0].any()
    negative = segmentation_loss(logits, torch.zeros_like(target), valid=valid)
    assert negative.count.item() == 4
    # An empty reference has no Dice: the cost is the cross-entropy alone, and pushes down wherever it is known.
    entropy = functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    torch.testing.assert_close(negative.loss, (entropy * valid).sum() / valid.sum())
    (gradient,) = torch.autograd.grad(negative.loss, logits)
    assert torch.equal(gradient > 0, valid > 0)
    # Beside a positive, its false positives cost Dice as well.
    mixed = torch.cat([target[:1], torch.zeros_like(target[:1])])
    together = segmentation_loss(logits[:2], mixed, cross_entropy=0.0)
    assert torch.autograd.grad(together.loss, logits)[0][1].min() > 0


def test_unknown_voxels_are_not_looked_at():
    logits, target, valid = inputs()
    wild = logits.detach().masked_fill(valid == 0, torch.nan).requires_grad_()
    odd = target.masked_fill(valid == 0, torch.nan)
    first, second = (segmentation_loss(x, y, valid=valid) for x, y in ((logits, target), (wild, odd)))
    assert first.loss.item() == second.loss.item()
    torch.testing.assert_close(torch.autograd.grad(second.loss, wild), torch.autograd.grad(first.loss, logits))


def test_autocast_is_left_and_no_rows_are_zero():
    logits, target, valid = inputs()
    logits, target, valid = logits.detach().float(), target.float(), valid.float()
    exact = segmentation_loss(logits, target, valid=valid).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(segmentation_loss(logits, target, valid=valid).loss, exact)
        assert segmentation_loss(logits.bfloat16(), target, valid=valid).loss.dtype == torch.float32
    leaf = logits.clone().requires_grad_()
    none = segmentation_loss(leaf[:0], target[:0], valid=valid[:0])
    none.loss.backward()
    assert (none.loss.item(), none.count.item()) == (0.0, 0.0)


def test_shapes_that_do_not_fit_are_refused():
    logits, target, valid = inputs(outputs=2)
    for bad in ({"target": target[:, 0]}, {"target": target, "valid": valid[..., :-1]}):
        with pytest.raises(ConfigError, match="segmentation of logits"):
            segmentation_loss(logits, **bad)

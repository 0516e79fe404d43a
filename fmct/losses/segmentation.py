"""Segmentation: cross-entropy and soft Dice of sigmoid outputs, over the voxels that are known."""

import torch
from monai.losses.utils import compute_tp_fp_fn
from torch import Tensor
from torch.nn import functional

from fmct import distributed
from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision
from fmct.losses.term import Term, flags, shares

SMOOTHING = 1e-5


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    has_mask: Tensor | None = None,
    cross_entropy: float = 1.0,
    dice: float = 1.0,
) -> Term:
    """Return `cross_entropy` · BCE + `dice` · (1 − soft Dice) over the samples of all ranks that have a mask.

    logits: (B, T, D, H, W), one sigmoid an output. target: (B, D, H, W) for T = 1, or (B, T, D, H, W), in [0, 1]: a
    share of lesion is a soft label, at which both parts are least. valid: (B, D, H, W) or (B, 1, D, H, W) in [0, 1],
    the weight of each voxel. has_mask: (B,) bool, true also for a mask known to be empty. Both are all ones by default.

    BCE is the mean over valid voxels, samples and outputs. Dice is batch-wise: one per output from the sums over all
    samples of all ranks (MONAI's soft-label form; Wang et al., "Dice Semimetric Losses", 2023), meaned over the outputs
    that have a lesion anywhere; an output without any has no Dice, and cross-entropy alone speaks for its voxels.
    count: samples with a mask. Raises ConfigError for shapes that do not fit.
    """
    target, weight = _on_grid(logits, target, valid)
    counted = flags(has_mask, len(logits), logits)
    with full_precision(logits):
        rows = counted.view(-1, 1, 1, 1, 1)
        known = torch.where(rows, as_float(weight.to(logits.device)), 0.0)
        # Unknown voxels become 0 before anything is computed, so that not even a NaN there is seen.
        seen = as_float(logits).masked_fill(known == 0, 0.0)
        truth = as_float(target.to(logits.device)).masked_fill(known == 0, 0.0).to(seen.dtype)
        entropy = functional.binary_cross_entropy_with_logits(seen, truth, reduction="none")
        voxels = known.sum().to(seen.dtype)[None] * logits.shape[1]
        means, count = shares((entropy * known).sum()[None], voxels, counted.sum())
        loss = cross_entropy * means[0]
        if dice:
            loss = loss + dice * _batch_dice(seen.sigmoid() * known, truth * known)
        return Term(loss, count)


def _batch_dice(probability: Tensor, truth: Tensor) -> Tensor:
    """Return 1 − Dice of (B, T, D, H, W), from sums over all ranks, meaned over outputs with any truth; else 0.

    Every rank returns the same value. Its gradient is that of the mean over ranks, as the sums carry gradient.
    """
    own = torch.stack(compute_tp_fp_fn(probability, truth, [0, 2, 3, 4], ord=1, soft_label=True))
    overlap, extra, missed = distributed.gather_with_gradient(own[None]).sum(0)
    score = (2 * overlap + SMOOTHING) / (2 * overlap + extra + missed + SMOOTHING)
    present = (overlap + missed).detach() > 0
    return ((1 - score) * present).sum() / present.sum().clamp(min=1)


def _on_grid(logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return target (B, T, D, H, W) and valid (B, 1, D, H, W)."""
    voxels = (len(logits), *logits.shape[2:])
    if target.shape == voxels:
        target = target[:, None]
    weight = torch.ones_like(target[:, :1]) if valid is None else valid
    if weight.shape == voxels:
        weight = weight[:, None]
    if logits.ndim != 5 or target.shape != logits.shape or weight.shape != (len(logits), 1, *logits.shape[2:]):
        raise ConfigError(
            f"segmentation of logits {tuple(logits.shape)}: expected a target of that shape, or without the channel "
            f"axis for one output, and valid (B, D, H, W); got {tuple(target.shape)} and {tuple(weight.shape)}."
        )
    return target, weight

"""Bags: a patient's label for crops that cannot be labelled one by one (multiple-instance learning)."""

import torch
from torch import Tensor
from torch.nn import functional

from fmct import distributed
from fmct.errors import ConfigError
from fmct.losses.classification import known_labels
from fmct.losses.precision import as_float, full_precision
from fmct.losses.term import Term, flags, no_contribution


def bag_loss(
    logits: Tensor,
    bags: Tensor,
    labels: Tensor,
    *,
    members: Tensor | None = None,
    attention: Tensor | None = None,
    sharpness: float = 1.0,
) -> Term:
    """Return the mean cross-entropy over the known labels of all ranks' bags; count is their number.

    logits: (B, T) of crops. bags: (B,) int64, the patient of each, whose crops may be on several ranks. labels: (B, T)
    or (B,) of the patients, the same for all crops of one; NaN or negative is unknown. members: (B,) bool, which crops
    take part, all by default. B is the same on every rank.

    A bag's logit is log-mean-exp of its crops' (`sharpness` s: 1/s · log mean exp(s · z), from their mean at 0 towards
    their maximum), or with `attention`, (B,) scores, their mean under the softmax of the scores within the bag. Raises
    ConfigError for shapes that do not fit.
    """
    labels = labels[:, None] if labels.ndim == 1 else labels
    if logits.ndim != 2 or labels.shape != logits.shape or bags.shape != logits.shape[:1]:
        raise ConfigError(
            f"bags: expected logits and labels (B, T) and bags (B,); got {tuple(logits.shape)}, "
            f"{tuple(labels.shape)} and {tuple(bags.shape)}."
        )
    if attention is not None and attention.shape != bags.shape:
        raise ConfigError(
            f"bags: expected one attention score a crop, {tuple(bags.shape)}; got {tuple(attention.shape)}."
        )
    if sharpness <= 0:
        raise ConfigError(f"bags: sharpness must be above 0; got {sharpness}.")
    with full_precision(logits):
        taking = distributed.gather(flags(members, len(bags), logits).byte()).bool()
        rows = distributed.gather_with_gradient(as_float(logits))
        if not bool(taking.any()):  # on any rank: all of them leave here together
            return Term(no_contribution(rows, *([] if attention is None else [attention])), rows.new_zeros(()))
        kept = distributed.gather(labels.to(logits.device))[taking]
        numbers = distributed.gather(bags.to(logits.device))[taking]
        # (bags, members) bool: sums under a mask, as scattered sums on a GPU differ from run to run.
        inside = numbers.unique()[:, None] == numbers
        if attention is None:
            sizes = inside.sum(1, keepdim=True).to(rows.dtype)
            pooled = (_log_sum_exp(rows[taking] * sharpness, inside) - sizes.log()) / sharpness
        else:
            scores = distributed.gather_with_gradient(as_float(attention))[taking]
            weights = (scores - _log_sum_exp(scores[:, None], inside)).exp() * inside
            pooled = weights @ rows[taking]
        # Any crop's label is the patient's; the maximum takes a known one before an unknown.
        known, truth = known_labels(_masked(kept.nan_to_num(-1.0).to(rows.dtype), inside).amax(1))
        costs = functional.binary_cross_entropy_with_logits(pooled, truth, reduction="none")
        # Every rank has computed all of it: the mean over ranks of the same value, and of its gradient.
        count = known.sum().to(rows.dtype)
        return Term((costs * known).sum() / count.clamp(min=1), count)


def _log_sum_exp(rows: Tensor, inside: Tensor) -> Tensor:
    """Return (bags, T): log Σ exp over the rows (M, T) of each bag."""
    return _masked(rows, inside).logsumexp(1)


def _masked(rows: Tensor, inside: Tensor) -> Tensor:
    """Return (bags, M, T): the rows (M, T) in each bag, and −∞ for those of other bags."""
    return torch.where(inside[:, :, None], rows, -torch.inf)

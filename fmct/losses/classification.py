"""Classification: cross-entropy of sigmoid outputs over the labels that are known."""

import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision
from fmct.losses.term import Term, mean_term


def binary_loss(logits: Tensor, labels: Tensor, *, pos_weight: Tensor | None = None) -> Term:
    """Return the mean cross-entropy over the known labels of all ranks; count is their number.

    logits: (B, T), one sigmoid a target. labels: (B, T), or (B,) for T = 1, in [0, 1]; NaN or a negative number is
    unknown and contributes nothing. pos_weight: (T,) factors of the positive labels' cost. Raises ConfigError for
    shapes that do not fit.
    """
    if labels.ndim == 1 and logits.shape[1:] == (1,):
        labels = labels[:, None]
    if logits.ndim != 2 or labels.shape != logits.shape:
        raise ConfigError(
            f"classification: expected logits and labels of one shape (B, T); got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}."
        )
    with full_precision(logits):
        known, truth = known_labels(labels.to(logits.device))
        # An unknown label's logit is not looked at, so that its gradient is exactly 0.
        seen = as_float(logits).masked_fill(~known, 0.0)
        costs = functional.binary_cross_entropy_with_logits(
            seen, truth.to(seen.dtype), reduction="none", pos_weight=pos_weight
        )
        return mean_term(costs, known.to(seen.dtype))


def known_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (known, truth): bool, where a label is neither NaN nor negative, and the labels with 0 elsewhere."""
    known = labels >= 0
    return known, torch.where(known, as_float(labels), 0.0)

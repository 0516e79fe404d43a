"""Attention supervision: a map of where the model looks is held to the lesion.

An option after Shi et al., "Automatic Diagnosis of Pulmonary Embolism Using an Attention-guided Framework", 2020, which
adds a Dice loss between attention map and mask. The formula here is fmct's, as the paper's was not available.
"""

import torch
from torch import Tensor

from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision
from fmct.losses.term import Term, flags, mean_term


def attention_loss(
    attention: Tensor,
    mask_fraction: Tensor,
    *,
    valid: Tensor | None = None,
    has_mask: Tensor | None = None,
    normalise: bool = False,
    negatives: bool = True,
    eps: float = 1e-6,
) -> Term:
    """Return 1 − (2 Σ AM + eps) / (Σ A + Σ M + eps), meaned over the samples of all ranks that have a mask.

    attention: (B, N) or (B, gd, gh, gw), A ≥ 0, best in [0, 1] such as a sigmoid. mask_fraction: equally many values,
    the lesion share M of each token. valid: likewise, the weight of each token. has_mask: (B,) bool, true also for a
    mask known to be empty. normalise: divide A by its maximum over the sample (held fixed), as softmax weights, which
    sum to 1, need. negatives: a sample without lesion contributes its mean A; otherwise nothing. count: the samples
    that contribute. Raises ConfigError for shapes that do not fit.
    """
    batch = len(attention)
    maps = [attention, mask_fraction] + ([valid] if valid is not None else [])
    if len({part.numel() for part in maps}) > 1 or any(len(part) != batch for part in maps):
        raise ConfigError(f"attention: expected maps of one size; got {[tuple(part.shape) for part in maps]}.")
    with full_precision(attention):
        known = torch.ones_like(attention) if valid is None else valid.to(attention.device)
        known = as_float(known).flatten(1)
        counted = flags(has_mask, batch, attention)[:, None] & (known > 0)
        looked = as_float(attention).flatten(1).masked_fill(~counted, 0.0)
        lesion = as_float(mask_fraction.to(attention.device)).flatten(1).masked_fill(~counted, 0.0)
        if normalise:
            looked = looked / looked.detach().amax(1, keepdim=True).clamp(min=eps)
        size = (lesion * known).sum(1)
        overlap = 2 * (looked * lesion * known).sum(1) + eps
        positive = 1 - overlap / ((looked * known).sum(1) + size + eps)
        empty = (looked * known).sum(1) / known.sum(1).clamp(min=eps)
        contributes = counted.any(1) & ((size > 0) | negatives)
        return mean_term(torch.where(size > 0, positive, empty), contributes.to(looked.dtype))

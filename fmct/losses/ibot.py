"""iBOT: cross-entropy on masked patch tokens (Zhou et al., "Image BERT Pre-Training with Online Tokenizer", 2022)."""

import torch
from torch import Tensor

from fmct.errors import ConfigError
from fmct.losses.soft_cross_entropy import soft_cross_entropy


def ibot_loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the masked-patch cross-entropy: the mean over the masked tokens of each view, summed, over all G·B views.

    student: (M, K) logits and teacher: (M, K) probabilities of the masked tokens, in the row-major order of `mask`,
    (G·B, N) bool with M true entries. Views without a mask count in the denominator, so the value is proportional to
    the share of masked views. No masked token gives 0 with a gradient path.
    """
    if student.shape != teacher.shape or mask.ndim != 2:
        raise ConfigError(
            f"iBOT needs student and teacher of one shape (M, K) and a (G·B, N) mask; got {tuple(student.shape)}, "
            f"{tuple(teacher.shape)} and {tuple(mask.shape)}."
        )
    weights = token_weights(mask, student) / len(mask)
    return soft_cross_entropy(student, teacher, weights, temperature)


def token_weights(mask: Tensor, tokens: Tensor) -> Tensor:
    """Return 1 / (masked tokens of its view) for each masked token of `mask` (G·B, N), row-major, in fp32 or fp64.

    tokens: (M, …), gives the number and the precision.
    """
    counts = mask.sum(dim=1)
    precision = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    shares = counts.clamp(min=1).to(precision).reciprocal()
    # The total is known to the caller: with it no device has to wait for the host.
    return shares.repeat_interleave(counts, output_size=len(tokens))

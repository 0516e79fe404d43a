"""iBOT: cross-entropy on masked patch tokens (Zhou et al., "Image BERT Pre-Training with Online Tokenizer", 2022)."""

from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision


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
    with full_precision(student):
        log_probabilities = functional.log_softmax(as_float(student) / temperature, dim=-1)
        per_token = (log_probabilities * as_float(teacher.detach())).sum(-1)
        return -(per_token * token_weights(mask, per_token)).sum() / len(mask)


def token_weights(mask: Tensor, per_token: Tensor) -> Tensor:
    """Return 1 / (masked tokens of its view) for each masked token of `mask` (G·B, N), row-major.

    per_token: (M,), gives the number and the precision.
    """
    counts = mask.sum(dim=1)
    shares = counts.clamp(min=1).to(per_token.dtype).reciprocal()
    # The total is known to the caller: with it no device has to wait for the host.
    return shares.repeat_interleave(counts, output_size=len(per_token))

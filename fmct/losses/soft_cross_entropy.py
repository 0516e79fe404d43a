"""Cross-entropy of logits against soft targets, without a second tensor of their size but the gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fmct.losses.precision import as_float, full_precision
from fmct.row_blocks import row_blocks


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Return Σ_m w_m Σ_k −t_mk ln softmax(s_m / T)_k, a scalar in fp32 (fp64 for fp64 logits).

    logits s: (M, K), any precision. targets t: (M, K) ≥ 0, whose rows need not sum to 1; no gradient reaches them.
    weights w: (M,). The softmax is computed again for the gradient, a few rows at a time, instead of being kept.
    """
    with full_precision(logits):
        return _SoftCrossEntropy.apply(logits, targets.detach(), weights.detach(), temperature)  # pyright: ignore


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """Return the weighted sum over rows."""
        ctx.save_for_backward(logits, targets, weights)
        ctx.temperature = temperature
        total = as_float(logits.new_zeros(()))
        for block in row_blocks(logits):
            log_probabilities = functional.log_softmax(as_float(logits[block]) / temperature, dim=-1)
            per_row = log_probabilities.mul_(as_float(targets[block])).sum(-1)
            total = total - (per_row * weights[block]).sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient to the logits: g · w_m / T · (softmax · Σ_k t_mk − t)."""
        logits, targets, weights = ctx.saved_tensors
        (incoming,) = gradients
        found = torch.empty_like(logits)
        for block in row_blocks(logits):
            aims = as_float(targets[block])
            slope = functional.softmax(as_float(logits[block]) / ctx.temperature, dim=-1)
            slope.mul_(aims.sum(-1, keepdim=True)).sub_(aims)
            scale = (incoming * weights[block] / ctx.temperature)[:, None]
            found[block] = slope.mul_(scale)
        return found, None, None, None

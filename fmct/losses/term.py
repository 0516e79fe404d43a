"""One term of a loss: a mean over whoever contributes to it, on all ranks, and how many those were."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmct import distributed
from fmct.errors import ConfigError


@dataclass(frozen=True)
class Term:
    """A scalar loss and its number of contributors.

    loss: this rank's share: the mean over ranks of the shares is the mean over the contributors of all ranks, and so is
    the gradient, once the engine has averaged it over ranks. Without any contributor it is exactly 0, with a gradient
    path of zeros, so that every rank can go on to backward. count: contributors on all ranks, equal on every rank, a
    scalar without gradient.
    """

    loss: Tensor
    count: Tensor


def shares(sums: Tensor, weights: Tensor, contributors: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return (means (k,), count): shares of Σ sums / Σ weights over ranks, and Σ contributors. A collective.

    sums: (k,) with gradient; weights: (k,) ≥ 0, whose gradient is not followed. A mean whose weights are 0 on every
    rank is its sum (which is then 0) with its gradient path.
    """
    number = torch.as_tensor(contributors, device=weights.device).to(weights.dtype)
    own = torch.cat([weights.detach(), number.reshape(1)])
    totals = distributed.sum_over_ranks(own)
    divisors = totals[:-1] / distributed.world_size()
    return sums / divisors.masked_fill(divisors == 0, 1.0), totals[-1]


def mean_term(values: Tensor, weights: Tensor) -> Term:
    """Return the mean of `values` under `weights` over all ranks; entries of weight 0 do not count. A collective.

    values, weights: equally shaped, of any size, zero included. Where the weight is 0 the value is not looked at, even
    if it is not finite.
    """
    counted = weights > 0
    total = (values.masked_fill(~counted, 0.0) * weights).sum()
    means, count = shares(total[None], weights.sum()[None].to(total.dtype), counted.sum())
    return Term(means[0], count)


def pooled(terms: Sequence[Term]) -> Term:
    """Return the mean over the contributors of all `terms`: the terms' mean, weighted by their counts.

    For the phases or the feature levels of one objective. Raises ConfigError for no terms.
    """
    if not terms:
        raise ConfigError("a mean over terms needs at least one term; got none.")
    counts = torch.stack([term.count for term in terms])
    total = counts.sum()
    losses = torch.stack([term.loss for term in terms])
    return Term((losses * (counts / total.clamp(min=1.0)).to(losses.dtype)).sum(), total)


def no_contribution(*tensors: Tensor) -> Tensor:
    """Return a scalar 0 with a gradient path of zeros to every one of `tensors`, whatever they hold."""
    return torch.stack([tensor.flatten()[:0].sum() for tensor in tensors]).sum()


def flags(given: Tensor | None, batch: int, like: Tensor) -> Tensor:
    """Return (B,) bool flags on the device of `like`; None means all true. Raises ConfigError for another shape."""
    if given is None:
        return torch.ones(batch, dtype=torch.bool, device=like.device)
    if given.shape != (batch,):
        raise ConfigError(f"a flag a sample: expected shape ({batch},), got {tuple(given.shape)}.")
    return given.to(device=like.device, dtype=torch.bool)

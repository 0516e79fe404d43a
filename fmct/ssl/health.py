"""Measures of collapse: entropies of the targets, rank and spread of the features. Pure functions of tensors."""

import math

import torch
from torch import Tensor

from fmct.losses.precision import as_float


def entropy(probabilities: Tensor) -> Tensor:
    """Return −Σ p ln p over the last axis, in nats; 0 ln 0 is 0."""
    logarithms = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log_()  # xlogy takes thrice the time
    return -logarithms.mul_(probabilities).sum(-1)


def perplexity(counts: Tensor) -> Tensor:
    """Return exp of the entropy of (K,) non-negative counts: how many prototypes are in use, between 1 and K."""
    return entropy(counts / counts.sum().clamp(min=1e-12)).exp()


@torch.no_grad()
def rank_me(features: Tensor) -> Tensor:
    """Return the effective rank of (n, D) features, uncentred, between 1 and min(n, D), as fp64 scalar.

    exp of the entropy of the normalised singular values plus 1e-7 (Garrido et al., "RankMe", 2023). Computed from the
    eigenvalues of the smaller Gram matrix in fp64, several times faster than a singular value decomposition.
    """
    rows = features.double()
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = singular / singular.sum().clamp(min=1e-300) + 1e-7
    return (-(shares * shares.log()).sum()).exp()


@torch.no_grad()
def feature_spread(features: Tensor) -> Tensor:
    """Return the mean per-dimension standard deviation of L2-normalised (n, D) features times √D: 1 spread, 0 equal."""
    unit = torch.nn.functional.normalize(as_float(features), dim=-1)
    return unit.std(0, unbiased=False).mean() * math.sqrt(features.shape[1])


@torch.no_grad()
def mean_cosine(features: Tensor) -> Tensor:
    """Return the mean cosine between different rows of (n, D) features; 1 when there is one row."""
    unit = torch.nn.functional.normalize(as_float(features), dim=-1)
    n = len(unit)
    if n < 2:
        return unit.new_ones(())
    return (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))

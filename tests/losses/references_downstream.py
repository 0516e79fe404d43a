"""Slow, obvious forms of the downstream objectives: loops over samples, tokens and pairs, after the definitions."""

import itertools
import math

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp(min=1e-6)


def places(grid: tuple[int, ...]) -> list[tuple[int, int, int]]:
    return list(itertools.product(*(range(n) for n in grid)))


def position(nct: Tensor, ctpa: Tensor, valid: Tensor, foreground: Tensor, weight: Tensor, gamma: float) -> Tensor:
    """Σ a (1 − cos) / Σ a over the valid tokens of all samples. valid, foreground: (B, 1, gd, gh, gw)."""
    above, below = nct.new_zeros(()), nct.new_zeros(())
    for b in range(len(nct)):
        for z, y, x in places(nct.shape[2:]):
            if weight[b] > 0 and valid[b, 0, z, y, x] >= 0.5:
                a = weight[b] * (1 + gamma * foreground[b, 0, z, y, x])
                above = above + a * (1 - unit(nct[b, :, z, y, x]) @ unit(ctpa[b, :, z, y, x]))
                below = below + a
    return above / below


def contiguity(nct: Tensor, ctpa: Tensor, valid: Tensor, weight: Tensor, reach: float) -> Tensor:
    """The mean squared difference of affinities over ordered pairs of valid tokens at most `reach` apart."""
    above, below = nct.new_zeros(()), nct.new_zeros(())
    for b in range(len(nct)):
        if weight[b] == 0:
            continue
        for i, j in itertools.permutations(places(nct.shape[2:]), 2):
            near = max(abs(p - q) for p, q in zip(i, j, strict=True)) <= reach
            if near and valid[(b, 0, *i)] >= 0.5 and valid[(b, 0, *j)] >= 0.5:
                ours = unit(nct[(b, slice(None), *i)]) @ unit(nct[(b, slice(None), *j)])
                theirs = unit(ctpa[(b, slice(None), *i)]) @ unit(ctpa[(b, slice(None), *j)])
                above = above + weight[b] * (ours - theirs) ** 2
                below = below + weight[b]
    return above / below


def sets(share: Tensor, valid: Tensor, spacing: tuple[float, ...], rho: float, ring: tuple[float, float]):
    """Return the places of P, of hard and of other background of one sample; share, valid: (gd, gh, gw)."""
    usable = [p for p in places(share.shape) if valid[p] >= 0.5]
    lesion = [p for p in usable if share[p] > 0]
    foreground = [p for p in lesion if share[p] >= rho]
    if lesion and not foreground:
        foreground = [max(lesion, key=lambda p: float(share[p]))]
    near, far = [], []
    for p in usable:
        if share[p] == 0:
            apart = min((math.dist([a * s for a, s in zip(p, spacing, strict=True)],
                                   [a * s for a, s in zip(q, spacing, strict=True)]) for q in lesion),
                        default=math.inf)  # fmt: skip
            if apart >= ring[0]:
                (near if apart <= ring[1] else far).append(p)
    return foreground, near, far


def discrepancy(features: Tensor, share: Tensor, foreground: list, background: list, beta: float, m: float) -> Tensor:
    """push + β pull of one sample (C, gd, gh, gw)."""
    at = {p: unit(features[(slice(None), *p)]) for p in foreground + background}
    push = [(at[i] @ at[j] - m).clamp(min=0) ** 2 for i in foreground for j in background]
    prototype = unit(sum((share[p] * at[p] for p in foreground), torch.zeros_like(features[:, 0, 0, 0])))
    mean = sum(share[p] for p in foreground) / len(foreground)
    pull = [share[p] / mean * (1 - at[p] @ prototype) for p in foreground]
    return torch.stack(push).mean() + beta * torch.stack(pull).mean()


def infonce(features: Tensor, share: Tensor, foreground: list, background: list, temperature: float) -> Tensor:
    """Mean over anchors of the mean over positives of −log exp(s⁺) / (exp(s⁺) + Σ exp(s⁻))."""
    at = {p: unit(features[(slice(None), *p)]) for p in foreground + background}
    prototype = unit(sum((share[p] * at[p] for p in foreground), torch.zeros_like(features[:, 0, 0, 0])))
    costs = []
    for anchor in foreground:
        against = sum(torch.exp(at[anchor] @ at[q] / temperature) for q in background)
        positives = [at[p] for p in foreground if p != anchor] + [prototype]
        near = [torch.exp(at[anchor] @ p / temperature) for p in positives]
        costs.append(torch.stack([-torch.log(s / (s + against)) for s in near]).mean())
    return torch.stack(costs).mean()

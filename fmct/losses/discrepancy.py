"""Intra-feature discrepancy: within one phase, lesion features stand together and apart from their surroundings.

CPMN-style ("Cross-Phase Mutual Learning Framework for Pulmonary Embolism Identification on Non-Contrast CT Scans", Bai
et al., MICCAI 2024), re-derived from its abstract: it names a discrepancy within each pathway that separates embolism
from a complex background. The equations below are fmct's interpretation, as the paper's were not available.

With unit features f̂, lesion share r, foreground tokens P and background tokens Q of one sample:

    push  mean over i in P, j in Q of max(0, ⟨f̂_i, f̂_j⟩ − margin)²
    pull  mean over i in P of (r_i / mean r) (1 − ⟨f̂_i, μ⟩),   μ = Σ_P r f̂ / |Σ_P r f̂|

The background is many tissues and is not drawn together.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.alignment import EPS
from fmct.losses.foreground_bank import ForegroundBank
from fmct.losses.foreground_tokens import TokenSets, choose_tokens
from fmct.losses.precision import as_float, full_precision
from fmct.losses.sampling import Seeds
from fmct.losses.term import Term, no_contribution, shares

Kind = Literal["push-pull", "infonce"]


def intra_feature_discrepancy(
    features: Tensor,
    mask_fraction: Tensor,
    *,
    spacing_mm: Sequence[float] | Tensor,
    valid: Tensor | None = None,
    has_mask: Tensor | None = None,
    seed: Seeds = 0,
    kind: Kind = "push-pull",
    beta: float = 0.5,
    margin: float = 0.0,
    temperature: float = 0.1,
    rho: float = 0.25,
    ring_mm: Sequence[float] = (3.0, 15.0),
    samples: int = 256,
    hard: Tensor | None = None,
    bank: ForegroundBank | None = None,
) -> Term:
    """Return push + `beta` · pull (see the module), meaned over the samples of all ranks that have both P and Q.

    features: (B, C, d, h, w) of one phase. mask_fraction: (B, 1, d, h, w) or (B, d, h, w), the lesion share r of each
    token. spacing_mm: between tokens, (3,) or (B, 3), z y x: the voxels' times the stride. valid: share of each token;
    below one half it plays no part. has_mask: (B,) bool, true also for a mask known to be empty; all true by default.

    P: tokens with r ≥ `rho`, or the one with the largest r > 0 where no token reaches it. Q: tokens without lesion and
    at least ring_mm[0] from any, at most `samples`, half of them from within ring_mm[1] or from `hard` (a map like
    `valid` of vessels and heart), half from elsewhere, drawn by `seed`: one integer, or one per sample. Tokens of
    small r and those nearer than ring_mm[0] are left out.

    kind: `push-pull`, or `infonce`: for each anchor in P and each positive (other tokens of P, at most `samples`, and
    μ), −log of its share against Q at `temperature`. bank: μ of earlier samples, from which the Q of samples without
    lesion is pushed too; these then count. Raises ConfigError for shapes or words that do not fit.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"discrepancy kind {kind!r}: expected {', '.join(get_args(Kind))}.")
    maps = {"valid": valid, "has_mask": has_mask, "hard": hard}
    rules = {"spacing_mm": spacing_mm, "rho": rho, "ring_mm": ring_mm, "samples": samples, "seed": seed}
    with full_precision(features):
        sets = choose_tokens(mask_fraction, features, **maps, **rules)
        losses, prototypes = [], []
        for row in sets.with_both():
            lesion, background, share = _unit_rows(features, sets, row)
            prototype = functional.normalize(share @ lesion, dim=0, eps=EPS)
            if kind == "push-pull":
                cost = push(lesion, background, margin) + beta * pull(lesion, share, prototype)
            else:
                cost = contrast(lesion, background, prototype, sets.first(row, samples), temperature)
            losses.append(cost)
            prototypes.append(prototype.detach())
        if bank is not None:
            losses += _against_bank(features, sets, bank, margin)
            bank.observe(prototypes)
        return _mean(losses, features)


def push(lesion: Tensor, background: Tensor, margin: float) -> Tensor:
    """Return the mean over all pairs of max(0, cosine − margin)² of unit rows (P, C) and (Q, C)."""
    return (lesion @ background.T - margin).clamp(min=0).square().mean()


def pull(lesion: Tensor, share: Tensor, prototype: Tensor) -> Tensor:
    """Return the mean of r / mean r · (1 − cosine to the prototype) of unit rows (P, C) with shares r (P,)."""
    return (share / share.mean() * (1 - lesion @ prototype)).mean()


def contrast(lesion: Tensor, background: Tensor, prototype: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE of every row of `lesion` (P, C): the mean over its positives of −log p(positive | positive, Q).

    positives: indices of the rows of `lesion` that serve as such, never for themselves; `prototype` (C,) is one more.
    background: (Q, C). All unit. van den Oord et al., 2018, with several positives as Khosla et al., 2020.
    """
    against = (lesion @ background.T / temperature).logsumexp(1, keepdim=True)
    near = lesion @ torch.cat([lesion[positives], prototype[None]]).T / temperature
    # log(1 + exp(q − s)) = −log(exp s / (exp s + exp q))
    costs = functional.softplus(against - near)
    own = torch.arange(len(lesion), device=lesion.device)[:, None] == positives
    others = torch.cat([~own, torch.ones_like(own[:, :1])], dim=1) if len(positives) else torch.ones_like(near) > 0
    return ((costs * others).sum(1) / others.sum(1)).mean()


def _unit_rows(features: Tensor, sets: TokenSets, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit features of P (P, C) and Q (Q, C), and the lesion shares of P (P,)."""
    tokens = as_float(features[row]).flatten(1).T
    chosen = sets.background[row][sets.taken[row]]
    lesion = functional.normalize(tokens[sets.foreground[row]], dim=1, eps=EPS)
    background = functional.normalize(tokens[chosen], dim=1, eps=EPS)
    return lesion, background, sets.share[row, sets.foreground[row]].to(lesion.dtype)


def _mean(losses: list[Tensor], features: Tensor) -> Term:
    """Return the mean over the losses of all ranks' samples. A collective."""
    total = torch.stack(losses).sum() if losses else as_float(no_contribution(features))
    number = total.new_tensor([float(len(losses))])
    means, count = shares(total[None], number, number)
    return Term(means[0], count)


def _against_bank(features: Tensor, sets: TokenSets, bank: ForegroundBank, margin: float) -> list[Tensor]:
    """Return the push of each sample that is known to be without lesion, from the bank's prototypes."""
    if not len(bank.prototypes()):
        return []
    prototypes = bank.prototypes().to(features.device, as_float(features[:0]).dtype)
    return [push(prototypes, _unit_rows(features, sets, row)[1], margin) for row in sets.without_lesion()]

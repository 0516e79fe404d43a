"""Inter-feature alignment: the features of two phases of one patient agree place by place, and in their geometry.

The heads are CPMN-style ("Cross-Phase Mutual Learning Framework for Pulmonary Embolism Identification on Non-Contrast
CT Scans", Bai et al., MICCAI 2024), re-derived from its abstract: it names an alignment between the pathways for
spatial contiguity and mutual learning. The equations below are fmct's interpretation, as the paper's were not
available; nothing here claims to be them.

With unit features û (NCT) and ŵ (CTPA) at one token:

    position    Σ a (1 − ⟨û, ŵ⟩) / Σ a,   a = pair weight · (1 + γ · lesion share)
    contiguity  mean over neighbouring tokens i, j of (⟨û_i, û_j⟩ − ⟨ŵ_i, ŵ_j⟩)²
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision
from fmct.losses.sampling import Seeds, chosen, priorities
from fmct.losses.term import Term, flags, shares
from fmct.losses.tokens import token_map, valid_tokens

Mode = Literal["mutual", "to_nct", "to_ctpa"]
Contiguity = Literal["local", "nonlocal"]
EPS = 1e-6  # features shorter than this are nothing; the gradient to them stays finite


def inter_feature_alignment(
    nct: Tensor,
    ctpa: Tensor,
    *,
    valid: Tensor | None = None,
    foreground: Tensor | None = None,
    has_pair: Tensor | None = None,
    pair_weight: Tensor | None = None,
    mode: Mode = "mutual",
    gamma: float = 4.0,
    kappa: float = 1.0,
    tolerance: int = 0,
    contiguity: Contiguity = "local",
    reach: int = 1,
    samples: int = 1024,
    seed: Seeds = 0,
) -> Term:
    """Return position + `kappa` · contiguity (see the module) over the pairs of all ranks, and the number of pairs.

    nct, ctpa: (B, C, gd, gh, gw) of the same places; B may be 0. valid: (B, 1, gd, gh, gw) or (B, gd, gh, gw) share of
    each token; below one half it plays no part. foreground: likewise, the lesion share. has_pair: (B,) bool.
    pair_weight: (B,) ≥ 0; 0 is no pair. Both are all ones by default.

    mode: `mutual` sends gradient to both sides, `to_nct` holds the CTPA features fixed, `to_ctpa` the NCT features; the
    value is the same. tolerance t: every ŵ is replaced by the most similar valid one within t tokens on each axis
    (3 × 3 × 3 for 1; no gradient through the choice), on the side of registration error. contiguity: `local`, pairs
    at most `reach` tokens apart on each axis, or `nonlocal`, all pairs of at most `samples` valid tokens drawn by
    `seed`: one integer, or one per sample. Raises ConfigError for shapes or words that do not fit.
    """
    _check(nct, ctpa, mode=mode, contiguity=contiguity, reach=reach, tolerance=tolerance)
    with full_precision(nct):
        weight = _pair_weights(has_pair, pair_weight, nct)
        tokens = valid_tokens(valid, nct) & (weight > 0)[:, None]
        u = unit_features(nct.detach() if mode == "to_ctpa" else nct, tokens)
        w = unit_features(ctpa.detach() if mode == "to_nct" else ctpa, tokens)
        if tolerance:
            w = _best_match(u, w, tokens, tolerance)
        lesion = token_map(foreground, nct, "foreground")
        emphasis = tokens * weight[:, None] * (1.0 if lesion is None else 1 + gamma * lesion)
        position = (emphasis * (1 - (u * w).sum(1).flatten(1))).sum()
        if contiguity == "local":
            difference, pairs = _neighbours(u, w, tokens, reach)
        else:
            difference, pairs = _everywhere(u, w, tokens, samples, seed)
        sums = torch.stack([position, (weight * difference).sum()])
        weights = torch.stack([emphasis.sum(), (weight * pairs).sum()])
        means, count = shares(sums, weights, tokens.any(1).sum())
        return Term(means[0] + kappa * means[1], count)


def unit_features(features: Tensor, tokens: Tensor) -> Tensor:
    """Return (B, C, gd, gh, gw) float features of length 1, and 0 outside `tokens` (B, N), where no gradient goes."""
    outside = ~tokens.view(len(features), 1, *features.shape[2:])
    return functional.normalize(as_float(features).masked_fill(outside, 0.0), dim=1, eps=EPS)


def _pair_weights(has_pair: Tensor | None, pair_weight: Tensor | None, like: Tensor) -> Tensor:
    """Return (B,) weights, 0 where there is no pair."""
    paired = flags(has_pair, len(like), like)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if pair_weight is None:
        return paired.to(dtype)
    if pair_weight.shape != (len(like),):
        raise ConfigError(f"pair_weight: expected shape ({len(like)},), got {tuple(pair_weight.shape)}.")
    return pair_weight.to(like.device, dtype).masked_fill(~paired, 0.0)


def _neighbours(u: Tensor, w: Tensor, tokens: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Return (B,) sums of squared differences of affinity over pairs at most `reach` apart, and the pairs' number."""
    inside = tokens.view(len(u), *u.shape[2:])
    total, pairs = u.new_zeros(len(u)), u.new_zeros(len(u))
    for offset in product(range(-reach, reach + 1), repeat=3):
        if offset <= (0, 0, 0):  # affinities are symmetric: one of each two opposite offsets
            continue
        here, there = _windows(u.shape[2:], offset)
        both = inside[here] & inside[there]
        difference = (u[here] * u[there]).sum(1) - (w[here] * w[there]).sum(1)
        total = total + (difference.square() * both).flatten(1).sum(1)
        pairs = pairs + both.flatten(1).sum(1)
    return total, pairs


def _everywhere(u: Tensor, w: Tensor, tokens: Tensor, samples: int, seed: Seeds) -> tuple[Tensor, Tensor]:
    """Return as `_neighbours`, over all pairs of at most `samples` tokens of each sample."""
    order = priorities(seed, batch=len(u), length=tokens.shape[1], purpose="contiguity")
    index, taken = chosen(tokens, order, samples)
    both = taken[:, :, None] & taken[:, None, :]
    both &= ~torch.eye(index.shape[1], dtype=torch.bool, device=both.device)
    affinities = []
    for field in (u, w):
        rows = field.flatten(2).gather(2, index[:, None].expand(-1, field.shape[1], -1))
        affinities.append(rows.transpose(1, 2) @ rows)
    difference = (affinities[0] - affinities[1]).square() * both
    return difference.flatten(1).sum(1), both.flatten(1).sum(1).to(u.dtype)


def _best_match(u: Tensor, w: Tensor, tokens: Tensor, tolerance: int) -> Tensor:
    """Return `w` with every token replaced by the valid one within `tolerance` tokens that is most similar to `u`."""
    with torch.no_grad():
        inside = tokens.view(len(u), *u.shape[2:])
        own = torch.arange(tokens.shape[1], device=u.device).view(1, *u.shape[2:])
        best, source = (u * w).sum(1), own.repeat(len(u), 1, 1, 1)
        for offset in product(range(-tolerance, tolerance + 1), repeat=3):
            here, there = _windows(u.shape[2:], offset)
            similar = (u[here] * w[there]).sum(1)
            # Strictly better: a tie keeps the nearer choice, the token itself before all others.
            better = (similar > best[here]) & inside[there]
            best[here] = torch.where(better, similar, best[here])
            source[here] = torch.where(better, own.expand_as(source)[there], source[here])
    # By index, whose gradient is summed in a fixed order on a GPU; that of `gather` is not where choices coincide.
    rows = w.flatten(2).transpose(1, 2)
    matched = rows[torch.arange(len(w), device=w.device)[:, None], source.flatten(1)]
    return matched.transpose(1, 2).reshape(w.shape)


def _windows(grid: Sequence[int], offset: Sequence[int]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return two indices into the last three axes of a tensor: all i for which i + offset is on the grid, and these."""
    here = [slice(max(0, -o), max(0, n - max(0, o))) for n, o in zip(grid, offset, strict=True)]
    there = [slice(max(0, o), max(0, n + min(0, o))) for n, o in zip(grid, offset, strict=True)]
    return (..., *here), (..., *there)


def _check(nct: Tensor, ctpa: Tensor, *, mode: str, contiguity: str, reach: int, tolerance: int) -> None:
    if nct.ndim != 5 or nct.shape != ctpa.shape:
        raise ConfigError(
            "alignment compares two feature maps (B, C, gd, gh, gw) of the same places; got "
            f"{tuple(nct.shape)} (NCT) and {tuple(ctpa.shape)} (CTPA): give the NCT rows that have a CTPA."
        )
    if mode not in get_args(Mode):
        raise ConfigError(f"alignment mode {mode!r}: expected {', '.join(get_args(Mode))}.")
    if contiguity not in get_args(Contiguity):
        raise ConfigError(f"alignment contiguity {contiguity!r}: expected {', '.join(get_args(Contiguity))}.")
    if reach < 1 or tolerance < 0:
        raise ConfigError(f"alignment: reach is at least 1 and tolerance at least 0; got {reach} and {tolerance}.")

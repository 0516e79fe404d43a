"""Which tokens of a feature map are lesion, which are background worth comparing with it, and which are left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmct.errors import ConfigError
from fmct.losses.distance import distance_to, token_spacing
from fmct.losses.sampling import Seeds, chosen, priorities
from fmct.losses.term import flags
from fmct.losses.tokens import VALID_SHARE, token_map, valid_tokens

_ROUNDING_MM = 1e-4  # a token at the ring's very edge is in it, whichever way its distance was rounded


@dataclass(frozen=True)
class TokenSets:
    """Foreground and background of (B, N) tokens.

    foreground: (B, N) bool. background: (B, K) indices of tokens, of which `taken` (B, K) bool are real. share: (B, N)
    lesion shares. order: (B, N) int64 on the CPU, the seeded order of the draw. known_empty: (B,) bool, samples whose
    mask is known and empty.
    """

    foreground: Tensor
    background: Tensor
    taken: Tensor
    share: Tensor
    order: Tensor
    known_empty: Tensor

    def with_both(self) -> list[int]:
        """Return the samples that have foreground and background."""
        return _numbers(self.foreground.any(1) & self.taken.any(1))

    def without_lesion(self) -> list[int]:
        """Return the samples that are known to have no lesion and have background."""
        return _numbers(self.known_empty & self.taken.any(1))

    def first(self, row: int, most: int) -> Tensor:
        """Return which of a sample's foreground tokens, at most `most`, come first in the seeded order."""
        return self.order[row, self.foreground[row].cpu()].argsort()[:most].to(self.foreground.device)


@torch.no_grad()
def choose_tokens(
    mask_fraction: Tensor,
    features: Tensor,
    *,
    spacing_mm: Sequence[float] | Tensor,
    valid: Tensor | None,
    has_mask: Tensor | None,
    hard: Tensor | None,
    rho: float,
    ring_mm: Sequence[float],
    samples: int,
    seed: Seeds,
) -> TokenSets:
    """Return the token sets of a batch; see `intra_feature_discrepancy` for the arguments and the rules.

    Raises ConfigError for maps that are not on the grid of `features` or for a ring or number that makes no sense.
    """
    if not 0 <= ring_mm[0] < ring_mm[1] or samples < 2 or not 0 < rho <= 1:
        raise ConfigError(
            f"discrepancy: expected 0 ≤ ring_mm[0] < ring_mm[1], samples ≥ 2 and 0 < rho ≤ 1; got {list(ring_mm)}, "
            f"{samples} and {rho}."
        )
    share = token_map(mask_fraction, features, "mask_fraction")
    if share is None:
        raise ConfigError("discrepancy: expected mask_fraction, the lesion share of each token; got None.")
    usable = valid_tokens(valid, features) & flags(has_mask, len(features), features)[:, None]
    touched = usable & (share > 0)
    grid = features.shape[2:]
    spacing = token_spacing(spacing_mm, len(features), features.device)
    distance = distance_to(touched.unflatten(1, grid), spacing).flatten(1)
    free = usable & (share <= 0) & (distance >= ring_mm[0] - _ROUNDING_MM)
    near = free & (distance <= ring_mm[1] + _ROUNDING_MM)
    organ = token_map(hard, features, "hard")
    if organ is not None:
        near |= free & (organ >= VALID_SHARE)
    order = priorities(seed, batch=len(features), length=share.shape[1], purpose="discrepancy")
    halves = [chosen(kind, order, samples // 2) for kind in (near, free & ~near)]
    return TokenSets(
        foreground=_foreground(share, touched, rho),
        background=torch.cat([index for index, _ in halves], dim=1),
        taken=torch.cat([taken for _, taken in halves], dim=1),
        share=share,
        order=order,
        known_empty=usable.any(1) & ~touched.any(1),
    )


def _foreground(share: Tensor, touched: Tensor, rho: float) -> Tensor:
    """Return (B, N) bool: touched tokens with a share of at least `rho`, or the one with the most where none has."""
    full = touched & (share >= rho)
    seen = share.masked_fill(~touched, -1.0)
    most = torch.zeros_like(full).scatter(1, seen.argmax(1, keepdim=True), True)
    return torch.where(full.any(1, keepdim=True), full, most & touched)


def _numbers(which: Tensor) -> list[int]:
    return [row for row, is_so in enumerate(which.tolist()) if is_so]

"""Random numbers that are functions of their key: the same on every device, rank, batch and worker count.

A counter-based hash on int64 tensors; no generator, no state. Keys name a sample (its draw and view), streams name a
use (a layer and branch).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97  # below 2^31, so that no product leaves int64


def keyed_uniform(keys: Tensor, *, seed: int, streams: Sequence[int]) -> Tensor:
    """Return (S, B) float32 numbers in [0, 1), one for each stream and each of the (B,) int64 `keys`."""
    keys = keys.to(torch.int64)
    names = torch.tensor(list(streams), dtype=torch.int64, device=keys.device)[:, None]
    state = _mix(torch.full_like(keys, (seed & _MASK) ^ 0x6A09E667))
    for word in (torch.full_like(keys, (seed >> 32) & _MASK), keys & _MASK, (keys >> 32) & _MASK, names):
        state = _mix((state * 3 + word + 0x3C6EF372) & _MASK)
    return (state >> 8).to(torch.float32) * 2.0**-24


def drop_path_factors(keys: Tensor, *, rate: float, depth: int, seed: int) -> Tensor:
    """Return (depth, 2, B) factors of both residual branches: 0 with probability `rate`, else 1 / (1 − rate).

    Each sample decides for itself, by (seed, key, layer, branch): the expectation is kept for any batch size, one
    included, and a sample's fate depends on neither batch nor rank.
    """
    uniform = keyed_uniform(keys, seed=seed, streams=range(2 * depth))
    return ((uniform >= rate) / (1 - rate)).unflatten(0, (depth, 2))


def _mix(x: Tensor) -> Tensor:
    """Return the bits of 32-bit words, each output bit depending on all input bits."""
    x = ((x >> 16) ^ x) * _FIRST & _MASK
    x = ((x >> 15) ^ x) * _SECOND & _MASK
    return (x >> 15) ^ x

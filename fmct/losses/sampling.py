"""Seeded choice of tokens: a function of a sample's seed and of the token grid, never of its place in the batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fmct import randomness
from fmct.errors import ConfigError

Seeds = int | Sequence[int] | Tensor


def priorities(seeds: Seeds, *, batch: int, length: int, purpose: str) -> Tensor:
    """Return (B, N) int64 on the CPU: for each sample a random order of its N = `length` tokens, without ties.

    seeds: one integer ≥ 0 for every sample, or (B,) of them, such as the samples' draws. Equal seeds give equal orders,
    wherever the sample stands. Raises ConfigError for another number of seeds.
    """
    numbers = [int(seed) for seed in (seeds.tolist() if isinstance(seeds, Tensor) and seeds.ndim else _listed(seeds))]
    if len(numbers) == 1 and isinstance(seeds, int | Tensor):
        numbers *= batch
    if len(numbers) != batch:
        raise ConfigError(f"seeds: expected one integer, or one for each of {batch} samples; got {len(numbers)}.")
    orders = {number: randomness.permutation(length, number, purpose) for number in set(numbers)}
    if not numbers:
        return torch.zeros(0, length, dtype=torch.int64)
    return torch.from_numpy(np.stack([orders[number] for number in numbers]))


def chosen(eligible: Tensor, order: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return (index, taken), each (B, M): the at most `most` eligible tokens of each sample that come first.

    eligible: (B, N) bool; order: (B, N) from `priorities`. M = min(most, N); `taken` marks the real choices, as a
    sample may have fewer than M eligible tokens.
    """
    length = eligible.shape[1]
    key = order.to(eligible.device).masked_fill(~eligible, length)
    first, index = key.topk(min(most, length), dim=1, largest=False)
    return index, first < length


def _listed(seeds: Seeds) -> list[int]:
    if isinstance(seeds, Tensor):
        return [int(seeds)]
    return [seeds] if isinstance(seeds, int) else list(seeds)

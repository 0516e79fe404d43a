"""What trained networks say of one prepared series: a probability a voxel, and a probability a candidate."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fmct.data.patches import Assembly, cut, tile_starts, tiles
from fmct.lesions.candidates import Candidate
from fmct.lesions.preparation import Prepared
from fmct.shapes import Triple

_BATCH = 16


@torch.no_grad()
def voxel_probability(
    network: nn.Module, prepared: Prepared, *, size: Triple, overlap: float, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Return (D, H, W) float32: the detector's probability, 0 outside the brain. Tiles without brain are left out.

    Where tiles overlap it is their mean.
    """
    shape = prepared.brain.shape
    total = Assembly(shape)
    starts, quiet = [], []
    for start in tile_starts(shape, size, overlap=overlap):
        box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        (starts if prepared.brain[box].any() else quiet).append(start)
    for start in quiet:
        total.add(np.zeros(size, np.float32), start)
    for first in range(0, len(starts), _BATCH):
        part = starts[first : first + _BATCH]
        x = torch.from_numpy(np.stack(list(tiles(prepared.channels, part, size)))).to(device)
        found = network(x, _spacing(prepared, len(part), device)).voxels.float().sigmoid()[:, 0].cpu().numpy()
        for values, start in zip(found, part, strict=True):
            total.add(values, start)
    return np.where(prepared.brain, total.result(), 0.0).astype(np.float32)


@torch.no_grad()
def judge(
    network: nn.Module,
    prepared: Prepared,
    candidates: Sequence[Candidate],
    *,
    size: Triple,
    device: torch.device | str = "cpu",
) -> list[float]:
    """Return the probability of each candidate that it is a lesion, from the patch around its middle."""
    scores: list[float] = []
    for first in range(0, len(candidates), 4 * _BATCH):
        part = candidates[first : first + 4 * _BATCH]
        x = torch.from_numpy(np.stack([cut(prepared.channels, c.centre, size) for c in part])).to(device)
        logits: Any = network(x, _spacing(prepared, len(part), device)).patch
        scores += logits.float().softmax(1)[:, 1].tolist()
    return scores


def _spacing(prepared: Prepared, count: int, device: torch.device | str) -> torch.Tensor:
    return torch.tensor(prepared.spacing_mm, dtype=torch.float32, device=device).expand(count, 3)

"""Distances in millimetres on a token grid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fmct.errors import ConfigError


def token_spacing(spacing_mm: Sequence[float] | Tensor, batch: int, device: torch.device) -> Tensor:
    """Return (B, 3) fp32 distances between neighbouring tokens (z, y, x) from (3,) or (B, 3), in mm.

    Raises ConfigError for another shape.
    """
    spacing = torch.as_tensor(spacing_mm, dtype=torch.float32, device=device)
    if spacing.shape == (3,):
        spacing = spacing.expand(batch, 3)
    if spacing.shape != (batch, 3):
        raise ConfigError(
            f"spacing_mm: expected (3,) or ({batch}, 3) millimetres between tokens (z, y, x), "
            f"got {tuple(spacing.shape)}."
        )
    return spacing


@torch.no_grad()
def distance_to(inside: Tensor, spacing: Tensor) -> Tensor:
    """Return (B, d, h, w) fp32: mm from the centre of each token to the centre of the nearest token inside.

    inside: (B, d, h, w) bool; spacing: (B, 3) mm (z, y, x). Infinite where a sample has nothing inside. The Euclidean
    distance, exact: the squares separate, so one minimum over each axis in turn suffices (Saito & Toriwaki, 1994). It
    costs d·h·w·(d + h + w) operations a sample, on any device.
    """
    squared = torch.where(inside, 0.0, torch.inf)
    for axis in range(3):
        length = inside.shape[1 + axis]
        place = torch.arange(length, device=inside.device, dtype=torch.float32)
        apart = (place[:, None] - place[None]) * spacing[:, axis, None, None]
        lines = squared.movedim(1 + axis, -1)
        reached = lines.unsqueeze(-2) + apart.square()[:, None, None]
        squared = reached.amin(-1).movedim(-1, 1 + axis)
    return squared.sqrt()

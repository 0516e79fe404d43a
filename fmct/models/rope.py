"""Rotary positions in millimetres: queries and keys are turned by angles that grow with physical distance.

Axial: each of z, y, x has head_dim // 6 frequencies, whose periods run geometrically from a shortest to a longest
period in mm. Attention then depends on offsets in mm only, whatever the crop, its grid or its spacing. In the unit
"crop", which some published encoders use (DINOv3's, each axis apart), coordinates run from −1 to 1 over the crop's
axis instead, spacing plays no part, and the periods are in that unit.
The pair (j, j + head_dim / 2) is one plane of rotation; planes beyond 3 · (head_dim // 6) do not turn
(head_dim 64: 60 dimensions turn, 4 do not).
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from fmct.errors import ConfigError
from fmct.models.keyed import keyed_uniform
from fmct.models.positions import patch_centres, remember
from fmct.row_blocks import row_blocks
from fmct.shapes import Triple, TripleF

UNITS = ("mm", "crop")
RESCALE_STREAM = 1 << 20  # apart from the streams of drop-path, which count layers


class RotaryTable(nn.Module):
    """Cosines and sines for a group of crops, computed once per forward pass and shared by all blocks."""

    def __init__(
        self,
        head_dim: int,
        *,
        patch_size: Triple,
        reference_mm: TripleF,
        min_period_mm: float,
        max_period_mm: float,
        rescale: float = 1.0,
        jitter: float = 1.0,
        seed: int = 0,
        unit: str = "mm",
    ) -> None:
        super().__init__()
        if unit not in UNITS:
            raise ConfigError(f"rope_unit: expected one of {', '.join(UNITS)}, got {unit!r}.")
        if head_dim < 6 or head_dim % 2:
            raise ConfigError(f"rotary positions need an even head dimension of at least 6, got {head_dim}.")
        if not 0 < min_period_mm < max_period_mm:
            raise ConfigError(
                "rope periods: expected 0 < rope_min_period_mm < rope_max_period_mm, got "
                f"{min_period_mm} and {max_period_mm}."
            )
        if rescale < 1 or jitter < 1:
            raise ConfigError(f"rope_rescale and rope_jitter are factors of at least 1, got {rescale} and {jitter}.")
        self.head_dim = head_dim
        self.patch_size = patch_size
        self.reference_mm = reference_mm
        self.unit = unit
        self.periods = (min_period_mm, max_period_mm)
        self.rescale = rescale
        self.jitter = jitter
        self.seed = seed
        self._cache: dict[Any, Tensor] = {}

    @property
    def is_random(self) -> bool:
        """Whether training turns the coordinates' scale at random."""
        return self.training and (self.rescale > 1 or self.jitter > 1)

    def forward(
        self, grid: Triple, spacing: Tensor | None, keys: Tensor | None, *, prefix: int, device: torch.device
    ) -> Tensor:
        """Return (1 or B, prefix + N, 2, head_dim / 2) float32 cosines and sines; prefix tokens do not turn.

        `spacing` is (B, 3) mm, or None for the reference spacing; `keys` (B,) int64 draw the random rescaling.
        """
        spacing = spacing if self.unit == "mm" else None
        if spacing is None and not self.is_random:
            return remember(
                self._cache, (grid, device, prefix), lambda: self._table(grid, self._reference(device), prefix)
            )
        spacing = self._reference(device) if spacing is None else spacing.to(device)
        if self.is_random:
            assert keys is not None
            spacing = spacing * self._factors(keys.to(device))
        return self._table(grid, spacing, prefix)

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """Return (head_dim // 6,) angular frequencies, radians per unit, from the shortest period to the longest."""
        count = self.head_dim // 6
        low, high = (math.log(p) for p in self.periods)
        return 2 * math.pi * torch.exp(-torch.linspace(low, high, count, dtype=torch.float64, device=device))

    def _reference(self, device: torch.device) -> Tensor:
        reference = self.reference_mm if self.unit == "mm" else (1.0, 1.0, 1.0)
        return torch.tensor([reference], dtype=torch.float32, device=device)

    def _table(self, grid: Triple, spacing: Tensor, prefix: int) -> Tensor:
        device = spacing.device
        patch = self.patch_size if self.unit == "mm" else [2 / tokens for tokens in grid]
        side = torch.tensor(patch, dtype=torch.float32, device=device)
        centres = patch_centres(grid, device).float() * (spacing.float() * side)[:, None]  # (B, N, 3) in units
        turned = centres[..., None] * self.frequencies(device).float()  # (B, N, 3, F)
        angles = centres.new_zeros(centres.shape[0], prefix + centres.shape[1], self.head_dim // 2)
        angles[:, prefix:, : turned.shape[-2] * turned.shape[-1]] = turned.flatten(2)
        return torch.stack([angles.cos(), angles.sin()], dim=2)

    def _factors(self, keys: Tensor) -> Tensor:
        """Return (B, 3) factors: one log-uniform in [1/rescale, rescale], times one per axis in [1/jitter, jitter]."""
        uniform = keyed_uniform(keys, seed=self.seed, streams=range(RESCALE_STREAM, RESCALE_STREAM + 4)) * 2 - 1
        common = uniform[:1] * math.log(self.rescale)
        return torch.exp(common + uniform[1:] * math.log(self.jitter)).T


def both_halves(table: Tensor) -> Tensor:
    """Return (M, 2, d) of (M, 2, d / 2) cosines and sines: for both dimensions of a plane, sines with their signs."""
    cos, sin = table.unbind(1)
    return torch.stack([torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)], dim=1)


def rotate(qkv: Tensor, spins: Tensor) -> Tensor:
    """Return (M, 3, H, d) with queries and keys turned and values unchanged; `spins` (M, 2, d), see `both_halves`.

    Half precision is turned in the precision of `spins` and rounded once.
    """
    return cast(Tensor, _Rotation.apply(qkv, spins))


class _Rotation(torch.autograd.Function):
    """A rotation keeps nothing but its angles for the backward pass, which is the opposite rotation."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, spins: Tensor) -> Tensor:
        """Return the turned (M, 3, H, d)."""
        ctx.save_for_backward(spins)
        return _turn(qkv, spins, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, turned back."""
        (spins,) = ctx.saved_tensors
        return _turn(gradients[0], spins, -1), None


def _turn(qkv: Tensor, spins: Tensor, sign: int) -> Tensor:
    turned = torch.empty_like(qkv)
    turned[:, 2] = qkv[:, 2]
    for block in row_blocks(qkv.flatten(1)):
        rows = qkv[block, :2].to(torch.promote_types(qkv.dtype, spins.dtype))
        cos, sin = spins[block, None, None].unbind(3)
        turned[block, :2] = (rows * cos).addcmul_(rows.roll(rows.shape[-1] // 2, -1), sin, value=sign)
    return turned

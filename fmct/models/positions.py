"""Where a token is: fixed sin-cos and learned position vectors, which are added to patch embeddings.

Rotary positions, which turn queries and keys instead, are in `fmct.models.rope`. No position is ever given to CLS or
registers. Grids and coordinates are (z, y, x).
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.shapes import Triple, TripleF

TEMPERATURE = 10_000.0


def sincos_positions(
    grid: Sequence[int],
    dim: int,
    *,
    step: Sequence[float] | Tensor = (1.0, 1.0, 1.0),
    device: torch.device | None = None,
) -> Tensor:
    """Return (N, dim) sin-cos position vectors of a token grid, or (B, N, dim) when `step` is (B, 3). float32.

    Each axis has dim // 6 frequencies 10000^(−k / (dim // 6)); the coordinate of a token is its index times `step`.
    The vector is [sin y, cos y, sin z, cos z, sin x, cos x] in array axes (z, y, x): the second axis comes first, as in
    the published head-CT model (its h, w, d are the first, second and third axis). A dim that is not a multiple of
    six ends in zeros.
    """
    count = dim // 6
    exponent = torch.arange(count, dtype=torch.float64, device=device) / max(count, 1)
    omega = TEMPERATURE**-exponent
    steps = torch.as_tensor(step, dtype=torch.float64, device=device).reshape(-1, 1, 3)
    angles = (_indices(grid, device) * steps)[..., None] * omega  # (B, N, 3, count)
    z, y, x = angles.unbind(-2)
    vectors = torch.cat([y.sin(), y.cos(), z.sin(), z.cos(), x.sin(), x.cos()], dim=-1)
    vectors = functional.pad(vectors, (0, dim - 6 * count)).float()
    return vectors if torch.is_tensor(step) and step.ndim == 2 else vectors[0]


def resize_positions(table: Tensor, old: Sequence[int], new: Sequence[int], *, offset: float = 0.0) -> Tensor:
    """Return (1, N', E): a (1, N, E) table on the grid `old`, interpolated trilinearly to the grid `new`.

    The table spans the whole crop on both grids. The same grid returns the table itself, bit for bit. offset: as DINOv2
    and 3DINO do it, with 0.1, the table is stretched by (new + offset) / old, and its last part is cut off.
    """
    if tuple(old) == tuple(new):
        return table
    volume = table.reshape(1, *old, table.shape[-1]).permute(0, 4, 1, 2, 3)
    if offset:
        factors = [(n + offset) / o for n, o in zip(new, old, strict=True)]
        resized = functional.interpolate(volume, scale_factor=factors, mode="trilinear", align_corners=False)
    else:
        resized = functional.interpolate(volume, size=list(new), mode="trilinear", align_corners=False)
    return resized.permute(0, 2, 3, 4, 1).reshape(1, -1, table.shape[-1])


class LearnedPositions(nn.Module):
    """A trainable table on a reference grid, interpolated to the grid at hand. `initial`: "normal" or "sincos"."""

    def __init__(self, grid: Triple, embed_dim: int, *, initial: str = "normal", offset: float = 0.0) -> None:
        super().__init__()
        if not 0 <= offset < 1:
            raise ConfigError(f"position_offset: expected a share of a token in [0, 1), got {offset}.")
        if initial not in ("normal", "sincos"):
            raise ConfigError(f"position_initial: expected normal or sincos, got {initial!r}.")
        self.grid = grid
        self.initial = initial
        self.offset = offset
        self.table = nn.Parameter(torch.empty(1, grid[0] * grid[1] * grid[2], embed_dim))

    def init_weights(self) -> None:
        """Fill the table."""
        with torch.no_grad():
            if self.initial == "sincos":
                self.table.copy_(sincos_positions(self.grid, self.table.shape[-1], device=self.table.device)[None])
            else:
                nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: Triple, spacing: Tensor | None, device: torch.device) -> Tensor:
        """Return (1, N, E) position vectors; `spacing` plays no part."""
        del spacing, device
        return resize_positions(self.table, self.grid, grid, offset=self.offset)


class SinCosPositions(nn.Module):
    """Fixed sin-cos vectors; coordinates count patches, or millimetres in units of the patch at the reference spacing.

    With `unit="mm"` a crop at the reference spacing has the same vectors as with `unit="patch"`.
    """

    def __init__(self, embed_dim: int, *, reference_mm: TripleF, unit: str = "patch") -> None:
        super().__init__()
        if unit not in ("patch", "mm"):
            raise ConfigError(f"sincos_unit: expected patch or mm, got {unit!r}.")
        self.embed_dim = embed_dim
        self.unit = unit
        self.reference_mm = reference_mm
        self._cache: dict[Any, Tensor] = {}

    def forward(self, grid: Triple, spacing: Tensor | None, device: torch.device) -> Tensor:
        """Return (1 or B, N, E) position vectors of crops with `spacing` (B, 3) mm, None meaning the reference."""
        if self.unit == "mm" and spacing is not None:
            step = spacing.to(device) / torch.tensor(self.reference_mm, dtype=spacing.dtype, device=device)
            return sincos_positions(grid, self.embed_dim, step=step, device=device)
        return remember(
            self._cache, (grid, device), lambda: sincos_positions(grid, self.embed_dim, device=device)[None]
        )


def remember(cache: dict[Any, Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """Return cache[key], made when absent. Only ordinary tensors are kept, never those of an inference or fake mode."""
    if key not in cache:
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        if type(made) is not Tensor:
            return made
        if len(cache) >= 16:
            cache.clear()
        cache[key] = made
    return cache[key]


def _indices(grid: Sequence[int], device: torch.device | None) -> Tensor:
    """Return (N, 3) float64 token indices (z, y, x), z slowest."""
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def patch_centres(grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return (N, 3) float64 patch centres in patches, relative to the crop's centre; z slowest."""
    middle = torch.tensor([(n - 1) / 2 for n in grid], dtype=torch.float64, device=device)
    return _indices(grid, device) - middle

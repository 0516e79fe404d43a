"""What sits on the encoder in pretraining: a projection onto prototypes, and reconstruction of voxels."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from timm.layers.norm import LayerNorm
from torch import Tensor, nn
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.models.layers import Block, Packing
from fmct.models.positions import SinCosPositions
from fmct.precision import without_autocast
from fmct.shapes import triple


class ProjectionHead(nn.Module):
    """DINO's head: an MLP with GELU to a bottleneck, L2 normalisation, then a linear layer onto prototypes.

    The prototypes are a plain Linear without bias or weight norm. They are frozen by a learning rate of zero on the
    parameters named `prototypes`, never by requires_grad. prototype_std: of their initial weights. Logits begin with
    that standard deviation, since the input has length 1: DINOv3's 0.02 gives nearly flat targets, which long runs
    sharpen by themselves; 1/√bottleneck_dim, weight norm's, has sharp targets from the first update on.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_prototypes: int = 65536,
        layers: int = 3,
        prototype_std: float = 0.02,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ConfigError(f"a projection head needs at least one layer before its prototypes, got {layers}.")
        widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        parts: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*parts[:-1])
        self.prototypes = nn.Linear(bottleneck_dim, num_prototypes, bias=False)
        init_linears(self)
        nn.init.trunc_normal_(self.prototypes.weight, std=prototype_std)

    def project(self, x: Tensor) -> Tensor:
        """Return (M, bottleneck) unit vectors, normalised in float32 whatever the autocast type."""
        x = self.mlp(x)
        with without_autocast(x.device):
            precise = x if x.dtype == torch.float64 else x.float()
            return functional.normalize(precise, dim=-1, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return (M, K) logits of (M, in_dim) features."""
        return self.prototypes(self.project(x))


class ReconstructionHead(nn.Module):
    """SimMIM's head: one linear layer from a token to the voxels of its patch."""

    def __init__(self, embed_dim: int, patch_size: int | Sequence[int], channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, channels * prod(triple(patch_size, "patch_size")))
        init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (M, C·pd·ph·pw) voxels of (M, E) tokens, in the order of `patchify`."""
        return self.linear(x)


class ReconstructionDecoder(nn.Module):
    """MAE's decoder: a few narrow transformer blocks over all patch tokens, then one linear layer to voxels.

    With a mask, masked tokens are replaced by the decoder's own mask token, so that voxels must come from what the
    encoder knows of the visible patches.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int | Sequence[int],
        channels: int,
        *,
        decoder_dim: int = 384,
        depth: int = 4,
        num_heads: int = 6,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.positions = SinCosPositions(decoder_dim, reference_mm=(1.0, 1.0, 1.0))
        self.blocks = nn.ModuleList(Block(decoder_dim, num_heads) for _ in range(depth))
        self.norm = LayerNorm(decoder_dim, eps=1e-6)
        self.linear = nn.Linear(decoder_dim, channels * prod(triple(patch_size, "patch_size")))
        init_linears(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, patches: Tensor, grid: Sequence[int], mask: Tensor | None = None) -> Tensor:
        """Return (B, N, C·pd·ph·pw) voxels of (B, N, E) patch tokens on `grid` (z, y, x); `mask` is (B, N) bool."""
        shape = triple(grid, "grid")
        if patches.ndim != 3 or patches.shape[1] != prod(shape):
            raise ConfigError(
                f"expected (B, {prod(shape)}, E) tokens for the grid {shape}, got {tuple(patches.shape)}."
            )
        x = self.embed(patches)
        hidden = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x) + self.positions(shape, None, x.device)
        packing = Packing(((x.shape[0], x.shape[1]),))
        rows = x.flatten(0, 1)
        for block in self.blocks:
            rows = block(rows, packing)
        return self.linear(self.norm(rows)).unflatten(0, x.shape[:2])


def init_linears(module: nn.Module) -> None:
    """Fill every linear layer inside: truncated normal 0.02 weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

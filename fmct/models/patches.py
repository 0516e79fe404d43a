"""Volumes as sequences of patches, and back. Tokens run z slowest, x fastest; so do the voxels inside a token."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.shapes import Triple, patch_grid, triple


def patchify(x: Tensor, patch_size: int | Sequence[int]) -> Tensor:
    """Return (B, N, C·pd·ph·pw) patches of a (B, C, D, H, W) volume; channels slowest, then z, y, x inside a patch.

    Raises ConfigError when the volume does not divide into patches.
    """
    pd, ph, pw = triple(patch_size, "patch_size")
    if x.ndim != 5:
        raise ConfigError(f"expected a volume (B, C, D, H, W), got a tensor of shape {tuple(x.shape)}.")
    batch, channels = x.shape[:2]
    gd, gh, gw = patch_grid(x.shape[2:], (pd, ph, pw))
    x = x.reshape(batch, channels, gd, pd, gh, ph, gw, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(batch, gd * gh * gw, channels * pd * ph * pw)


def unpatchify(patches: Tensor, patch_size: int | Sequence[int], grid: Sequence[int]) -> Tensor:
    """Return the (B, C, D, H, W) volume of (B, N, C·pd·ph·pw) patches on `grid` (z, y, x): the inverse of patchify.

    Raises ConfigError when the number of patches or their length does not fit.
    """
    pd, ph, pw = triple(patch_size, "patch_size")
    gd, gh, gw = triple(grid, "grid")
    batch, count, length = patches.shape
    channels, rest = divmod(length, pd * ph * pw)
    if count != gd * gh * gw or rest or not channels:
        raise ConfigError(
            f"{count} patches of {length} values do not form a volume: a grid of {(gd, gh, gw)} with patches of "
            f"{(pd, ph, pw)} voxels needs {gd * gh * gw} patches of a multiple of {pd * ph * pw} values."
        )
    x = patches.reshape(batch, gd, gh, gw, channels, pd, ph, pw).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(batch, channels, gd * pd, gh * ph, gw * pw)


class PatchEmbed(Protocol):
    """What turns voxels into patch embeddings; an encoder takes another than its own for a second kind of input."""

    @property
    def in_channels(self) -> int:
        """Channels of the volumes."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Return (B, N, E) patch embeddings of (B, C, D, H, W) volumes."""
        ...


class PatchEmbedding(nn.Module):
    """Linear embedding of non-overlapping patches: (B, C, D, H, W) → (B, N, E).

    The weight has the shape of the equivalent strided Conv3d, (E, C, pd, ph, pw). The product is a plain matrix
    product on rearranged voxels, which is several times faster than a 3D convolution on CPUs and in bf16 on GPUs.
    """

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int | Sequence[int]) -> None:
        super().__init__()
        self.patch_size: Triple = triple(patch_size, "patch_size")
        self.in_channels = in_channels
        self.weight = nn.Parameter(torch.empty(embed_dim, in_channels, *self.patch_size))
        self.bias = nn.Parameter(torch.empty(embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, E) patch embeddings of (B, C, D, H, W) volumes, or of (B, N, C·pd·ph·pw) patches of them."""
        patches = x if x.ndim == 3 else patchify(x, self.patch_size)
        return functional.linear(patches, self.weight.flatten(1), self.bias)

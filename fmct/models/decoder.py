"""The dense decoder: tokens of several depths, upsampled to voxels beside a convolutional stem at full resolution.

A token covers a whole patch, so what is smaller than a patch reaches the logits through the stem: its features at
every stride join the upsampled tokens, as in UNETR (Hatamizadeh et al. 2022), of whose blocks this is made.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock
from torch import Tensor, nn

from fmct.errors import ConfigError
from fmct.models.group_norm import group_norm_act
from fmct.shapes import Triple, triple

NECK_STRIDE = 4  # voxels; the discrepancy loss wants a map at least this fine
PRIMES = (2, 3, 5, 7, 11, 13)


def upsampling_steps(patch_size: int | Sequence[int]) -> list[Triple]:
    """Return the factors (z, y, x) that lead from tokens to voxels, the coarsest first; their product is the patch.

    Each axis takes its prime factors, the largest first. An axis with fewer of them is done earlier: the last steps,
    at fine resolution, are left to the axes of small voxels, as in (4, 16, 16) → (2,2,2), (2,2,2), (1,2,2), (1,2,2).
    """
    factors = [_primes(p) for p in triple(patch_size, "patch_size")]
    count = max(1, *(len(f) for f in factors))
    padded = [[*f, *[1] * (count - len(f))] for f in factors]
    return [(z, y, x) for z, y, x in zip(*padded, strict=True)]


def strides(steps: Sequence[Triple]) -> list[Triple]:
    """Return the stride in voxels before the first step and after each: the last one is (1, 1, 1)."""
    back = accumulate(reversed(steps), lambda a, b: _product(a, b), initial=(1, 1, 1))
    return list(back)[::-1]


def _block(before: int, after: int) -> UnetBasicBlock:
    """Return MONAI's two convolutions; each norm brings its activation."""
    return _activated(UnetBasicBlock(3, before, after, kernel_size=3, stride=1, norm_name=group_norm_act(after)))


def _up(before: int, after: int, step: Triple) -> UnetrUpBlock:
    """Return MONAI's transposed convolution, whose result joins a skip in a block."""
    norm = group_norm_act(after)
    block = UnetrUpBlock(3, before, after, kernel_size=3, upsample_kernel_size=step, norm_name=norm, res_block=False)
    assert isinstance(block.conv_block, UnetBasicBlock), "res_block=False"
    _activated(block.conv_block)
    return block


def _activated(block: UnetBasicBlock) -> UnetBasicBlock:
    """Return a block without its own activation: that is in its norms."""
    block.lrelu = nn.Identity()
    return block


class ConvStem(nn.Module):
    """Convolutions on the volume itself: features at full resolution and at every stride up to the first step's end."""

    def __init__(self, in_channels: int, channels: Sequence[int], steps: Sequence[Triple]) -> None:
        """`channels` from fine to coarse, one more than the `steps` (fine to coarse) between them."""
        super().__init__()
        widths = [in_channels, *channels]
        self.blocks = nn.ModuleList(
            _block(before, after) if stride == (1, 1, 1) else _Down(before, after, stride)
            for before, after, stride in zip(widths, channels, [(1, 1, 1), *steps], strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps from fine to coarse."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


class _Down(nn.Module):
    """A strided convolution whose kernel is its stride, then a block: no voxel is passed over."""

    def __init__(self, before: int, after: int, stride: Triple) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(before, after, kernel_size=stride, stride=stride)
        self.block = _block(after, after)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map at the coarser stride."""
        return self.block(self.reduce(x))


class DenseDecoder(nn.Module):
    """Token maps of several depths and the volume → logits per voxel.

    Args:
        embed_dim: channels of a token map.
        patch_size: voxels of a token (z, y, x), any, also unequal.
        in_channels: of the volume.
        outputs: logits per voxel.
        taps: token maps, joined by one linear layer.
        width: channels at the tokens' stride; halved at each finer one, down to stem_channels.
        stem_channels: channels at full resolution. Both are multiples of 4.

    neck_stride: voxels (z, y, x) of the neck, the coarsest map with a stride of at most 4 on every axis.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int | Sequence[int],
        *,
        in_channels: int,
        outputs: int = 1,
        taps: int = 4,
        width: int = 64,
        stem_channels: int = 8,
    ) -> None:
        super().__init__()
        if width % 4 or stem_channels % 4 or not 4 <= stem_channels <= width:
            raise ConfigError(
                f"decoder: width and stem_channels are multiples of 4, the stem not wider; got {width} and "
                f"{stem_channels}."
            )
        steps = upsampling_steps(patch_size)
        channels = _channels(width, stem_channels, len(steps))
        self.steps = steps
        at = strides(steps)
        self.neck_level = next(level for level, stride in enumerate(at) if max(stride) <= NECK_STRIDE)
        self.neck_stride: Triple = at[self.neck_level]
        self.neck_channels = channels[self.neck_level]
        self.join = nn.Conv3d(taps * embed_dim, width, kernel_size=1)
        self.mix = _block(width, width)
        self.stem = ConvStem(in_channels, channels[:0:-1], steps[:0:-1])
        self.up = nn.ModuleList(
            _up(before, after, step) for before, after, step in zip(channels, channels[1:], steps, strict=False)
        )
        self.output = UnetOutBlock(3, channels[-1], outputs)

    def forward(self, maps: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, outputs, D, H, W) and the neck (B, c, d, h, w) of token maps and their volume."""
        skips = self.stem(x)
        y = self.mix(self.join(torch.cat(list(maps), dim=1)))
        levels = [y]
        for block, skip in zip(self.up, reversed(skips), strict=True):
            y = block(y, skip)
            levels.append(y)
        return self.output(y), levels[self.neck_level]


def _channels(width: int, least: int, steps: int) -> list[int]:
    """Return channels from the tokens' stride to full resolution: halved, rounded up to a multiple of 4, ≥ `least`."""
    found = [width]
    for _ in range(steps):
        found.append(max(least, -(-found[-1] // 8) * 4))
    found[-1] = least
    return found


def _primes(number: int) -> list[int]:
    found = []
    for prime in PRIMES:
        while number % prime == 0:
            number //= prime
            found.append(prime)
    return sorted([*found, *([number] if number > 1 else [])], reverse=True)


def _product(a: Triple, b: Triple) -> Triple:
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])

"""Convolutional networks for small lesions: a detector of voxels, and a teacher and a student that judge a patch.

The layout is the published one (Sundaresan et al. 2023, Front Neuroinform 17:1204186), with `width` channels at full
resolution (64 in the paper) and a choice of norm. `activated_head=False` is the published head, whose fully connected
layers follow each other without an activation and so are one linear map.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.models.adaptation import EncoderHolder
from fmct.models.padding import crop_to, pad_to, padded_size
from fmct.shapes import Triple

NORMS = ("batch", "group")
STRIDE: Triple = (4, 4, 4)
PRIOR = -4.6  # logit of a share of .01: a voxel head begins with it, or the few lesion voxels are outvoted for long


class LesionOutput(NamedTuple):
    """voxels: (B, 1, D, H, W) logits of lesion, None of a network without that head. patch: (B, 2) logits of no lesion
    and lesion, or None. features: (B, F) what the patch head reads, pooled, or None.
    """

    voxels: Tensor | None
    patch: Tensor | None
    features: Tensor | None


def norm(kind: str, channels: int) -> nn.Module:
    """Return batch norm, or group norm. Raises ConfigError for another name.

    Groups hold at least eight channels: a patch ends in one voxel, of which a group of two would leave only a sign.
    """
    if kind not in NORMS:
        raise ConfigError(f"norm: expected one of {', '.join(NORMS)}, got {kind!r}.")
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    return nn.GroupNorm(gcd(channels, max(1, channels // 8)), channels)


def double_conv(before: int, after: int, kernels: tuple[int, int], kind: str) -> nn.Sequential:
    """Return two convolutions that keep the size, each with norm and ReLU."""
    layers: list[nn.Module] = []
    for channels, kernel in zip((before, after), kernels, strict=True):
        layers += [nn.Conv3d(channels, after, kernel, padding=kernel // 2), norm(kind, after), nn.ReLU()]
    return nn.Sequential(*layers)


class LesionEncoder(nn.Module):
    """Three levels: maps of `width`, 2 · width and 4 · width channels at strides 1, 2 and 4."""

    def __init__(self, in_channels: int, width: int, kind: str) -> None:
        super().__init__()
        self.channels = (width, 2 * width, 4 * width)
        self.mix = nn.Conv3d(in_channels, 3, 1)
        self.blocks = nn.ModuleList(
            double_conv(before, after, (3, 1), kind)
            for before, after in zip((3, *self.channels), self.channels, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of (B, C, D, H, W), every side a multiple of 4, from fine to coarse."""
        maps = [self.blocks[0](self.mix(x))]
        for block in self.blocks[1:]:
            maps.append(block(functional.max_pool3d(maps[-1], 2)))
        return maps


class LesionDecoder(nn.Module):
    """The maps of a LesionEncoder → one logit a voxel: the difference of the two classes' outputs."""

    def __init__(self, channels: tuple[int, ...], kind: str) -> None:
        super().__init__()
        pairs = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(deep, fine, 3, stride=2, padding=1, output_padding=1) for deep, fine in pairs
        )
        self.blocks = nn.ModuleList(double_conv(2 * fine, fine, (3, 1), kind) for _, fine in pairs)
        self.output = nn.Conv3d(channels[0], 2, 1)
        with torch.no_grad():
            self.output.bias.copy_(torch.tensor([-PRIOR / 2, PRIOR / 2]))  # type: ignore[union-attr]

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return (B, 1, D, H, W) logits; their sigmoid is the softmax of the two outputs at the lesion's."""
        x = maps[-1]
        for up, block, skip in zip(self.up, self.blocks, maps[-2::-1], strict=True):
            x = block(torch.cat([up(x), skip], dim=1))
        both = self.output(x)
        return both[:, 1:] - both[:, :1]


class PatchHead(nn.Module):
    """The deepest map of a patch → two logits. Its first convolution pads by one, so that 6³ cells become 8³.

    extra: further features that its first linear layer reads.
    """

    def __init__(self, channels: int, kind: str, *, activated: bool, extra: int = 0) -> None:
        super().__init__()
        half = max(2, channels // 2)
        self.reduce = nn.Sequential(nn.Conv3d(channels, half, 1, padding=1), norm(kind, half), nn.ReLU())
        self.blocks = nn.ModuleList(double_conv(half, half, (3, 3), kind) for _ in range(2))
        # 128 and 32 units in the paper, and never fewer than 32 and 16: of a handful all may fall silent.
        sizes = (half * 8 + extra, max(32, half), max(16, half // 4), 2)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(sizes)):
            layers += [nn.Linear(before, after), *([nn.LeakyReLU(0.1)] if activated and number < 2 else [])]
        self.layers = nn.Sequential(*layers)

    def forward(self, deepest: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return (B, 2) logits of (B, C, d, h, w) and, where the head has it, `extra` (B, E).

        No sigmoid stands at the end: distillation wants logits.
        """
        x = self.reduce(deepest)
        for block in self.blocks:
            x = block(functional.max_pool3d(x, 2))
        # Published patches of 24³ arrive here as 2³ cells, which this leaves as they are; other sizes are made so.
        flat = functional.adaptive_avg_pool3d(x, 2).flatten(1)
        return self.layers(flat if extra is None else torch.cat([flat, extra], dim=1))


def centre_features(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Return (B, ΣC): the largest value of each channel in the 3³ cells of each map about the voxel size // 2.

    maps: of a volume of `size` voxels, each of whole strides. What is judged is the candidate in the middle, and not
    another lesion or vessel that the patch happens to show.
    """
    found = []
    for m in maps:
        box = []
        for n, cells in zip(size, m.shape[2:], strict=True):
            middle = min(n // 2 // -(-n // cells), cells - 1)
            box.append(slice(max(middle - 1, 0), middle + 2))
        found.append(m[(..., *box)].amax((2, 3, 4)))
    return torch.cat(found, dim=1)


class ConvDetector(EncoderHolder):
    """The published detector: a 3D U-Net of three levels, logits of every voxel of any volume.

    Args:
        in_channels: image and symmetry map: 2.
        width: channels at full resolution; 64 gives the published 3.43 M parameters.
        kind: of the norm.
    """

    def __init__(self, in_channels: int = 2, *, width: int = 64, kind: str = "batch") -> None:
        super().__init__()
        self.encoder = LesionEncoder(in_channels, width, kind)
        self.decoder = LesionDecoder(self.encoder.channels, kind)

    def forward(self, x: Tensor, spacing: Tensor | None = None) -> LesionOutput:
        """Return voxel logits of (B, C, D, H, W); `spacing` plays no part."""
        del spacing
        size = x.shape[2:]
        maps = self.encoder(pad_to(x, padded_size(size, STRIDE), 0.0))
        return LesionOutput(crop_to(self.decoder(maps), size), None, None)


class ConvJudge(EncoderHolder):
    """The published discriminator of patches. With the decoder it is the teacher, without it the student.

    Args:
        in_channels, width, kind: as of ConvDetector; width 64 gives 5.37 M (teacher) and 3.14 M (student) parameters.
        voxels: with the voxel head.
        activated_head: leaky ReLU between the fully connected layers.
        centred: the patch head also reads every map about the patch's middle (not in the paper).
    """

    def __init__(
        self,
        in_channels: int = 2,
        *,
        width: int = 64,
        kind: str = "batch",
        voxels: bool = False,
        activated_head: bool = True,
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = LesionEncoder(in_channels, width, kind)
        self.decoder = LesionDecoder(self.encoder.channels, kind) if voxels else None
        self.centred = centred
        extra = sum(self.encoder.channels) if centred else 0
        self.head = PatchHead(self.encoder.channels[-1], kind, activated=activated_head, extra=extra)
        self.features = self.encoder.channels[-1]

    def forward(self, x: Tensor, spacing: Tensor | None = None) -> LesionOutput:
        """Return patch logits, pooled features and, of a teacher, voxel logits of (B, C, D, H, W) patches."""
        del spacing
        size = x.shape[2:]
        maps = self.encoder(pad_to(x, padded_size(size, STRIDE), 0.0))
        voxels = crop_to(self.decoder(maps), size) if self.decoder is not None else None
        extra = centre_features(maps, size) if self.centred else None
        return LesionOutput(voxels, self.head(maps[-1], extra), maps[-1].mean((2, 3, 4)))

"""Convolutional networks for small lesions: a detector of voxels, and a teacher and a student that judge a patch.

The layout is the published one (Sundaresan et al. 2023, Front Neuroinform 17:1204186), with `width` channels at full
resolution (64 in the paper) and a choice of norm. `activated_head=False` is the published head, whose fully connected
layers follow each other without an activation and so are one linear map.
"""

from itertools import pairwise
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
    """Return batch norm, or group norm of up to 8 groups. Raises ConfigError for another name."""
    if kind not in NORMS:
        raise ConfigError(f"norm: expected one of {', '.join(NORMS)}, got {kind!r}.")
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    return nn.GroupNorm(max(g for g in range(1, 9) if channels % g == 0 and channels // g >= 2), channels)


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
    """The deepest map of a patch → two logits. Its first convolution pads by one, so that 6³ cells become 8³."""

    def __init__(self, channels: int, kind: str, *, activated: bool) -> None:
        super().__init__()
        half = max(2, channels // 2)
        self.reduce = nn.Sequential(nn.Conv3d(channels, half, 1, padding=1), norm(kind, half), nn.ReLU())
        self.blocks = nn.ModuleList(double_conv(half, half, (3, 3), kind) for _ in range(2))
        sizes = (half * 8, half, max(2, half // 4), 2)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(sizes)):
            layers += [nn.Linear(before, after), *([nn.ReLU()] if activated and number < 2 else [])]
        self.layers = nn.Sequential(*layers)

    def forward(self, deepest: Tensor) -> Tensor:
        """Return (B, 2) logits of (B, C, d, h, w). No sigmoid stands at the end: distillation wants logits."""
        x = self.reduce(deepest)
        for block in self.blocks:
            x = block(functional.max_pool3d(x, 2))
        # Published patches of 24³ arrive here as 2³ cells, which this leaves as they are; other sizes are made so.
        return self.layers(functional.adaptive_avg_pool3d(x, 2).flatten(1))


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
        activated_head: ReLU between the fully connected layers.
    """

    def __init__(
        self,
        in_channels: int = 2,
        *,
        width: int = 64,
        kind: str = "batch",
        voxels: bool = False,
        activated_head: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = LesionEncoder(in_channels, width, kind)
        self.decoder = LesionDecoder(self.encoder.channels, kind) if voxels else None
        self.head = PatchHead(self.encoder.channels[-1], kind, activated=activated_head)
        self.features = self.encoder.channels[-1]

    def forward(self, x: Tensor, spacing: Tensor | None = None) -> LesionOutput:
        """Return patch logits, pooled features and, of a teacher, voxel logits of (B, C, D, H, W) patches."""
        del spacing
        size = x.shape[2:]
        maps = self.encoder(pad_to(x, padded_size(size, STRIDE), 0.0))
        voxels = crop_to(self.decoder(maps), size) if self.decoder is not None else None
        return LesionOutput(voxels, self.head(maps[-1]), maps[-1].mean((2, 3, 4)))

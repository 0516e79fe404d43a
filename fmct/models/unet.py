"""The convolutional control: MONAI's DynUNet (nnU-Net's network) with the segmenter's interface.

Its parts are taken from a DynUNet as MONAI builds and initialises it, but stand apart as encoder and decoder, so that
two phases can share the one and not the other, and so that no weight has two names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from monai.networks.blocks.dynunet_block import UnetBasicBlock
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from fmct.errors import ConfigError
from fmct.models.adaptation import EncoderHolder
from fmct.models.decoder import NECK_STRIDE
from fmct.models.padding import crop_to, pad_to, padded_size
from fmct.models.segmenter import SegmenterOutput
from fmct.shapes import Triple, triple

DEFAULT_FILTERS = (16, 32, 64, 128)


@dataclass(frozen=True)
class UNetConfig:
    """A U-Net. filters: channels from full resolution to the bottom; strides: factors (z, y, x) between them."""

    filters: list[int] = field(default_factory=lambda: list(DEFAULT_FILTERS))
    strides: list[list[int]] | None = None
    air: float = 0.0


class ConvEncoder(nn.Module):
    """DynUNet's contracting half: maps (B, C_s, …) at every stride, the first at full resolution."""

    def __init__(
        self,
        in_channels: int,
        *,
        filters: Sequence[int] = DEFAULT_FILTERS,
        strides: Sequence[int | Sequence[int]] | None = None,
    ) -> None:
        """`strides`: the factors between maps, one fewer than the filters; 2 on every axis where not given."""
        super().__init__()
        steps = [triple(s, "strides") for s in (strides or [2] * (len(filters) - 1))]
        if len(filters) < 3 or len(steps) != len(filters) - 1:
            raise ConfigError(
                f"U-Net: expected three or more filters and one stride between each two, got {len(filters)} and "
                f"{len(steps)}."
            )
        net = dyn_unet(in_channels, 1, filters, steps)
        self.in_channels = in_channels
        self.filters = list(filters)
        self.steps = steps
        self.input_block: UnetBasicBlock = net.input_block  # type: ignore[assignment]
        self.downsamples = net.downsamples
        self.bottleneck = net.bottleneck

    @property
    def strides(self) -> list[Triple]:
        """Voxels (z, y, x) of a cell of each map, from fine to coarse."""
        return list(accumulate(self.steps, lambda a, b: (a[0] * b[0], a[1] * b[1], a[2] * b[2]), initial=(1, 1, 1)))

    def forward(
        self, x: Tensor, shift: Tensor | None = None, *, input_block: UnetBasicBlock | None = None
    ) -> list[Tensor]:
        """Return the maps of (B, C, D, H, W), every side a multiple of the last stride.

        shift: (filters[0],) added inside the first block, between its last norm and activation: further down, the
        next norm would take it away again. input_block: takes the place of the encoder's own, for another input.
        """
        block = self.input_block if input_block is None else input_block
        first = block.lrelu(block.norm1(block.conv1(x)))
        first = block.norm2(block.conv2(first))
        if shift is not None:
            first = first + shift[:, None, None, None]
        maps = [block.lrelu(first)]
        for down in [*self.downsamples, self.bottleneck]:
            maps.append(down(maps[-1]))
        return maps


class ConvDecoder(nn.Module):
    """DynUNet's expanding half: maps at every stride → logits per voxel, and the neck on the way."""

    def __init__(self, encoder: ConvEncoder, *, outputs: int = 1) -> None:
        super().__init__()
        net = dyn_unet(encoder.in_channels, outputs, encoder.filters, encoder.steps)
        self.upsamples = net.upsamples
        self.output_block = net.output_block
        self.neck_level = max(i for i, stride in enumerate(encoder.strides) if max(stride) <= NECK_STRIDE)
        self.neck_level = min(self.neck_level, len(encoder.filters) - 2)
        self.neck_stride: Triple = encoder.strides[self.neck_level]
        self.neck_channels = encoder.filters[self.neck_level]

    def forward(self, maps: Sequence[Tensor], x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits (B, outputs, D, H, W) and the neck (B, c, d, h, w); the volume `x` itself plays no part."""
        del x
        y, levels = maps[-1], {}
        for level, block in zip(range(len(maps) - 2, -1, -1), self.upsamples, strict=True):
            y = block(y, maps[level])
            levels[level] = y
        return self.output_block(y), levels[self.neck_level]


class UNet(EncoderHolder):
    """A plain U-Net with the Segmenter's interface; `spacing` and keys are taken and play no part.

    Args:
        in_channels: of the volume.
        outputs: logits per voxel.
        filters, strides: of ConvEncoder.
        air: fills volumes up to whole multiples of the coarsest stride, at the far ends.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        outputs: int = 1,
        filters: Sequence[int] = DEFAULT_FILTERS,
        strides: Sequence[int | Sequence[int]] | None = None,
        air: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = ConvEncoder(in_channels, filters=filters, strides=strides)
        self.decoder = ConvDecoder(self.encoder, outputs=outputs)
        self.air = air

    @property
    def multiple(self) -> Triple:
        """Voxels (z, y, x) of which a padded side holds a whole number."""
        return self.encoder.strides[-1]

    @property
    def tap_strides(self) -> list[Triple]:
        """Voxels (z, y, x) of a cell of each tap."""
        return self.encoder.strides

    @property
    def neck_stride(self) -> Triple:
        """Voxels (z, y, x) of a cell of the neck."""
        return self.decoder.neck_stride

    def forward(
        self, x: Tensor, spacing: Tensor | None = None, *, drop_path_keys: Tensor | None = None
    ) -> SegmenterOutput:
        """Return the output for (B, C, D, H, W) volumes of any size; the taps are the encoder's maps."""
        del spacing, drop_path_keys
        size = x.shape[2:]
        x = pad_to(x, conv_size(size, self.encoder), self.air)
        maps = self.encoder(x)
        logits, neck = self.decoder(maps)
        return SegmenterOutput(crop_to(logits, size), maps, neck)


def conv_size(size: Sequence[int], encoder: ConvEncoder) -> Triple:
    """Return `size` completed to whole multiples of the coarsest stride, with two cells at least on the last axis:
    instance norm is undefined on one voxel."""
    d, h, w = padded_size(size, encoder.strides[-1])
    if (d, h, w) == encoder.strides[-1]:
        w *= 2
    return d, h, w


def dyn_unet(in_channels: int, outputs: int, filters: Sequence[int], steps: Sequence[Triple]) -> DynUNet:
    """Return MONAI's network, instance norm and leaky ReLU throughout."""
    return DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=outputs,
        kernel_size=[3] * len(filters),
        strides=[1, *steps],
        upsample_kernel_size=list(steps),
        filters=list(filters),
        norm_name=("instance", {"affine": True}),
    )


def build_unet(config: UNetConfig, *, in_channels: int, outputs: int = 1) -> UNet:
    """Return a config's U-Net. Raises ConfigError."""
    return UNet(in_channels, outputs=outputs, filters=config.filters, strides=config.strides, air=config.air)

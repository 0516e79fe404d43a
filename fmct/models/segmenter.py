"""Segmenters: an encoder and a dense decoder, for volumes of any size."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from fmct.models.adaptation import EncoderHolder
from fmct.models.decoder import DenseDecoder
from fmct.models.padding import crop_to, pad_to, padded_size
from fmct.models.taps import tap
from fmct.models.vision_transformer import VisionTransformer
from fmct.shapes import Triple


class SegmenterOutput(NamedTuple):
    """logits (B, outputs, D, H, W) on the input's voxels; taps and neck on the padded input's grid.

    taps: (B, C, gd, gh, gw), shallow to deep, of strides `tap_strides` of the network; neck (B, c, d, h, w) of stride
    `neck_stride`. Cell i of a map covers the voxels from i · stride on; the last ones may cover padding.
    """

    logits: Tensor
    taps: list[Tensor]
    neck: Tensor


@dataclass(frozen=True)
class SegmenterConfig:
    """A segmenter's decoder. See Segmenter for what each key does."""

    taps: int = 4
    width: int = 64
    stem_channels: int = 8
    air: float = 0.0


class Segmenter(EncoderHolder):
    """Logits for every voxel.

    Args:
        encoder: any encoder with the VisionTransformer's methods.
        outputs: logits per voxel.
        taps: depths that the decoder reads, at equal shares.
        width, stem_channels: of the decoder (see DenseDecoder).
        air: what air is in the input's windows: fills volumes up to whole patches, at the far ends.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        outputs: int = 1,
        taps: int = 4,
        width: int = 64,
        stem_channels: int = 8,
        air: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.taps = taps
        self.air = air
        self.decoder = DenseDecoder(
            encoder.embed_dim,
            encoder.patch_size,
            in_channels=encoder.in_channels,
            outputs=outputs,
            taps=taps,
            width=width,
            stem_channels=stem_channels,
        )

    @property
    def multiple(self) -> Triple:
        """Voxels (z, y, x) of which a padded side holds a whole number."""
        return self.encoder.patch_size

    @property
    def tap_strides(self) -> list[Triple]:
        """Voxels (z, y, x) of a cell of each tap."""
        return [self.encoder.patch_size] * self.taps

    @property
    def neck_stride(self) -> Triple:
        """Voxels (z, y, x) of a cell of the neck."""
        return self.decoder.neck_stride

    def forward(
        self, x: Tensor, spacing: Tensor | None = None, *, drop_path_keys: Tensor | None = None
    ) -> SegmenterOutput:
        """Return the output for (B, C, D, H, W) volumes of any size with `spacing` (B, 3) mm."""
        size = x.shape[2:]
        x = pad_to(x, padded_size(size, self.multiple), self.air)
        maps, _ = tap(self.encoder, x, taps=self.taps, spacing=spacing, drop_path_keys=drop_path_keys)
        logits, neck = self.decoder(maps, x)
        return SegmenterOutput(crop_to(logits, size), maps, neck)


def build_segmenter(encoder: VisionTransformer, config: SegmenterConfig, *, outputs: int = 1) -> Segmenter:
    """Return a config's segmenter on `encoder`. Raises ConfigError."""
    return Segmenter(encoder, outputs=outputs, **vars(config))

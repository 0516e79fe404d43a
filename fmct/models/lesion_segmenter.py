"""An encoder for small lesions: token maps of the image, and a decoder whose stem keeps full resolution.

A microbleed is smaller than a token, so what is told of it at the voxel comes through the stem (fmct.models.decoder).
The encoder sees the image alone, one channel, so that a published encoder of one channel fits; the stem sees the
symmetry map as well.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fmct.errors import ConfigError
from fmct.models.adaptation import EncoderHolder
from fmct.models.decoder import DenseDecoder
from fmct.models.encoder import EncoderConfig, build_encoder
from fmct.models.lesion_networks import PRIOR, ConvDetector, ConvJudge, LesionEncoder, LesionOutput, centre_features
from fmct.models.padding import crop_to, pad_to, padded_size
from fmct.models.pooling import LogitLinear
from fmct.models.taps import tap
from fmct.models.vision_transformer import VisionTransformer


def small_encoder() -> EncoderConfig:
    """Return a transformer with tokens of 4 voxels, 96 wide and 4 blocks deep: for crops of 24 to 48 voxels."""
    return EncoderConfig(size="tiny", embed_dim=96, depth=4, num_heads=3, patch_size=[4, 4, 4], num_registers=0)


@dataclass(frozen=True)
class LesionNetworkConfig:
    """A network for lesions. kind: `conv` (the published layout; width, norm, activated_head, centred) or `encoder` (a
    transformer under a decoder with taps, decoder_width and stem_channels; encoder as of fmct.models.encoder).
    """

    kind: str = "conv"
    width: int = 16
    norm: str = "group"
    activated_head: bool = True
    centred: bool = True
    encoder: EncoderConfig = field(default_factory=small_encoder)
    taps: int = 2
    decoder_width: int = 32
    stem_channels: int = 8


class EncoderLesionNetwork(EncoderHolder):
    """A transformer with a voxel head, a patch head, or both.

    Args:
        encoder: of one channel.
        in_channels: of the input, the image first.
        voxels, patch: which heads.
        taps, decoder_width, stem_channels: of the voxel head (see DenseDecoder).
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        in_channels: int = 2,
        *,
        voxels: bool,
        patch: bool,
        taps: int = 2,
        decoder_width: int = 32,
        stem_channels: int = 8,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.taps = taps
        settings = {"width": decoder_width, "stem_channels": stem_channels}
        self.decoder = (
            DenseDecoder(encoder.embed_dim, encoder.patch_size, in_channels=in_channels, taps=taps, **settings)
            if voxels
            else None
        )
        if self.decoder is not None:
            nn.init.constant_(self.decoder.output.conv.conv.bias, PRIOR)  # type: ignore[arg-type]
        self.stem = LesionEncoder(in_channels, stem_channels, "group") if patch else None
        self.features = 7 * stem_channels + encoder.embed_dim
        self.head = nn.Sequential(nn.Linear(self.features, 64), nn.ReLU(), LogitLinear(64, 2)) if patch else None

    def forward(self, x: Tensor, spacing: Tensor | None = None) -> LesionOutput:
        """Return the output for (B, C, D, H, W) with `spacing` (B, 3) mm."""
        size = x.shape[2:]
        x = pad_to(x, padded_size(size, self.encoder.patch_size), 0.0)
        maps, _ = tap(self.encoder, x[:, :1], taps=self.taps, spacing=spacing)
        voxels = crop_to(self.decoder(maps, x)[0], size) if self.decoder is not None else None
        if self.head is None or self.stem is None:
            return LesionOutput(voxels, None, None)
        fine = pad_to(x, padded_size(x.shape[2:], (4, 4, 4)), 0.0)
        joined = torch.cat([centre_features(maps[-1:], size), centre_features(self.stem(fine), size)], dim=1)
        return LesionOutput(voxels, self.head(joined), joined)


def build_lesion_network(
    config: LesionNetworkConfig,
    *,
    voxels: bool,
    patch: bool,
    in_channels: int = 2,
    encoder: VisionTransformer | None = None,
) -> EncoderHolder:
    """Return a config's network with the heads asked for; on `encoder` where one is given. Raises ConfigError."""
    if config.kind == "conv":
        if not patch:
            return ConvDetector(in_channels, width=config.width, kind=config.norm)
        return ConvJudge(
            in_channels,
            width=config.width,
            kind=config.norm,
            voxels=voxels,
            activated_head=config.activated_head,
            centred=config.centred,
        )
    if config.kind != "encoder":
        raise ConfigError(f"network.kind: expected conv or encoder, got {config.kind!r}.")
    return EncoderLesionNetwork(
        encoder or build_encoder(config.encoder, 1),
        in_channels,
        voxels=voxels,
        patch=patch,
        taps=config.taps,
        decoder_width=config.decoder_width,
        stem_channels=config.stem_channels,
    )

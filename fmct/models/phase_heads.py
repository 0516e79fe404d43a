"""What one phase of a dual-pathway network has on top of an encoder: a light decoder, a classifier, projectors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmct.models.decoder import DenseDecoder
from fmct.models.heads import init_linears
from fmct.models.padding import crop_to
from fmct.models.pooling import AttentivePooling, LogitLinear, pooling_heads
from fmct.models.taps import Features
from fmct.models.unet import ConvDecoder, ConvEncoder
from fmct.models.vision_transformer import VisionTransformer

ALIGNED = 2  # maps that phases are compared on: a ViT's last tap and the one before, a U-Net's two deepest


class PhaseOutput(NamedTuple):
    """One phase of a batch of R rows.

    segmentation: (R, outputs, D, H, W) logits on the input's voxels. classification: (R, classes) logits. taps: the
    encoder's maps (R, C, gd, gh, gw), shallow to deep. aligned: the two deepest, projected where the network has
    projectors: what the phases are compared on. neck: (R, c, d, h, w), stride at most 4. attention: (R, N) weights
    over the patch tokens, z slowest, mean over heads, summing to one; None for a convolutional encoder.
    Maps lie on the padded input's grid.
    """

    segmentation: Tensor
    classification: Tensor
    taps: list[Tensor]
    aligned: list[Tensor]
    neck: Tensor
    attention: Tensor | None


class Projector(nn.Module):
    """Linear, GELU, linear on the channels of a map: phases are then compared in the projected space."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, dim))
        init_linears(self)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, dim, d, h, w) of (B, C, d, h, w)."""
        return self.mlp(features.movedim(1, -1)).movedim(-1, 1)


class PhaseClassifier(nn.Module):
    """Logits of a volume. ViT: [CLS, attention-pooled patch tokens] → MLP; conv: [mean, maximum] of the deepest map."""

    def __init__(self, channels: int, outputs: int, *, num_heads: int | None, hidden: int) -> None:
        """`num_heads` None: for a convolutional encoder."""
        super().__init__()
        self.pooling = AttentivePooling(channels, num_heads) if num_heads is not None else None
        self.mlp = nn.Sequential(nn.Linear(2 * channels, hidden), nn.GELU(), LogitLinear(hidden, outputs))
        init_linears(self.mlp)

    def forward(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Return (B, outputs) logits and (B, N) attention weights or None."""
        deepest = features.maps[-1].flatten(2)
        if self.pooling is None:
            return self.mlp(torch.cat([deepest.mean(2), deepest.amax(2)], dim=1)), None
        pooled, weights = self.pooling(deepest.transpose(1, 2))
        assert features.cls is not None
        return self.mlp(torch.cat([features.cls, pooled], dim=1)), weights.mean(1)


class PhaseHeads(nn.Module):
    """Decoder, classifier and projectors of a phase, on an encoder that is not part of this module.

    Args:
        encoder: says what the maps are; nothing of it is kept.
        in_channels: of this phase's volumes.
        outputs, classes: logits per voxel and per volume.
        taps, width, stem_channels: of a ViT's decoder (see DenseDecoder).
        hidden: width of the classifier's MLP.
        projector_dim: width of the projected maps, None for no projectors.
    """

    def __init__(
        self,
        encoder: VisionTransformer | ConvEncoder,
        *,
        in_channels: int,
        outputs: int,
        classes: int,
        taps: int,
        width: int,
        stem_channels: int,
        hidden: int,
        projector_dim: int | None,
    ) -> None:
        super().__init__()
        if isinstance(encoder, ConvEncoder):
            channels, heads = encoder.filters, None
            self.decoder = ConvDecoder(encoder, outputs=outputs)
        else:
            channels, heads = [encoder.embed_dim] * taps, pooling_heads(encoder.embed_dim)
            self.decoder = DenseDecoder(
                encoder.embed_dim,
                encoder.patch_size,
                in_channels=in_channels,
                outputs=outputs,
                taps=taps,
                width=width,
                stem_channels=stem_channels,
            )
        self.classifier = PhaseClassifier(channels[-1], classes, num_heads=heads, hidden=hidden)
        self.projectors = None
        if projector_dim is not None:
            self.projectors = nn.ModuleList(Projector(c, projector_dim) for c in channels[-ALIGNED:])

    def forward(self, features: Features, x: Tensor, size: Sequence[int]) -> PhaseOutput:
        """Return the output of padded volumes `x` and their features; `size` is that before padding."""
        segmentation, neck = self.decoder(features.maps, x)
        classification, attention = self.classifier(features)
        aligned = features.maps[-ALIGNED:]
        if self.projectors is not None:
            aligned = [project(map_) for project, map_ in zip(self.projectors, aligned, strict=True)]
        return PhaseOutput(crop_to(segmentation, size), classification, features.maps, aligned, neck, attention)

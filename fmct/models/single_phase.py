"""Segmentation and classification of one phase: what a dual-pathway network is without its second pathway.

It is both the non-contrast baseline and what is exported: it has the names, the initial values and the arithmetic of
the dual network's first pathway, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fmct.models.adaptation import EncoderHolder
from fmct.models.padding import pad_to, padded_size
from fmct.models.phase_heads import ALIGNED, PhaseHeads, PhaseOutput
from fmct.models.taps import Features, tap
from fmct.models.unet import ConvEncoder, conv_size
from fmct.models.vision_transformer import VisionTransformer
from fmct.shapes import Triple


class DualPhaseOutput(NamedTuple):
    """Both phases of a batch.

    nct: all B rows. ctpa: the R rows that have a pair, or None without any. pair_rows: (R,) int64, which rows of the
    batch these are. idle: a zero whose gradient is a zero for every parameter that a batch without pairs leaves out;
    add it to the loss, so that each rank has the same gradients to reduce.
    """

    nct: PhaseOutput
    ctpa: PhaseOutput | None
    pair_rows: Tensor
    idle: Tensor


@dataclass(frozen=True)
class PatchesOfPhase:
    """A patch embedding with a phase's vector (E,) added to every patch."""

    embed: Any
    vector: Tensor | None

    @property
    def in_channels(self) -> int:
        """Channels of the volumes."""
        return self.embed.in_channels

    def __call__(self, x: Tensor) -> Tensor:
        """Return (B, N, E)."""
        patches = self.embed(x)
        return patches if self.vector is None else patches + self.vector


class SinglePhase(EncoderHolder):
    """One phase, usually the non-contrast series: logits per voxel and per volume.

    Args:
        encoder: a VisionTransformer, or a ConvEncoder for the convolutional control.
        outputs: logits per voxel.
        classes: logits per volume.
        taps, width, stem_channels: of a ViT's decoder (see DenseDecoder).
        hidden: width of the classifier's MLP.
        projector_dim: of `aligned`, None for the maps themselves.
        phase_embedding: whether a vector, zero at first, is added to the patch embeddings (of a ConvEncoder: inside
            its first block). The network then begins as the encoder it is given, bit for bit.
        air: what air is in the input's windows: fills volumes up to whole patches, at the far ends.
    """

    def __init__(
        self,
        encoder: VisionTransformer | ConvEncoder,
        *,
        outputs: int = 1,
        classes: int = 1,
        taps: int = 4,
        width: int = 64,
        stem_channels: int = 8,
        hidden: int = 128,
        projector_dim: int | None = None,
        phase_embedding: bool = True,
        air: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.taps = len(encoder.filters) if isinstance(encoder, ConvEncoder) else taps
        self.air = air
        self._head_settings: dict[str, Any] = {
            "outputs": outputs,
            "classes": classes,
            "taps": taps,
            "width": width,
            "stem_channels": stem_channels,
            "hidden": hidden,
            "projector_dim": projector_dim,
        }
        self.nct = PhaseHeads(encoder, in_channels=encoder.in_channels, **self._head_settings)
        self.phase_embedding = nn.Parameter(torch.zeros(1, _phase_width(encoder))) if phase_embedding else None

    @property
    def multiple(self) -> Triple:
        """Voxels (z, y, x) of which a padded side holds a whole number."""
        return self.tap_strides[-1]

    @property
    def tap_strides(self) -> list[Triple]:
        """Voxels (z, y, x) of a cell of each tap."""
        if isinstance(self.encoder, ConvEncoder):
            return self.encoder.strides
        return [self.encoder.patch_size] * self.taps

    @property
    def aligned_strides(self) -> list[Triple]:
        """Voxels (z, y, x) of a cell of each aligned map."""
        return self.tap_strides[-ALIGNED:]

    @property
    def neck_stride(self) -> Triple:
        """Voxels (z, y, x) of a cell of the neck."""
        return cast(Triple, self.nct.decoder.neck_stride)

    def forward(
        self,
        x_n: Tensor,
        x_c: Tensor | None = None,
        *,
        spacing: Tensor | None = None,
        has_pair: Tensor | None = None,
        drop_path_keys: Tensor | None = None,
    ) -> DualPhaseOutput:
        """Return the output for non-contrast volumes (B, C, D, H, W) with `spacing` (B, 3) mm; `ctpa` is None.

        Raises TypeError when a CTPA is offered: this network has nothing that could read it.
        """
        if x_c is not None or has_pair is not None:
            raise TypeError(
                "this model reads the non-contrast series alone: it has no CTPA pathway. Call it with x_n and spacing."
            )
        rows = torch.empty(0, dtype=torch.int64, device=x_n.device)
        return DualPhaseOutput(self._non_contrast(x_n, spacing, drop_path_keys), None, rows, x_n.new_zeros(()))

    def _non_contrast(self, x: Tensor, spacing: Tensor | None, keys: Tensor | None) -> PhaseOutput:
        vector = None if self.phase_embedding is None else self.phase_embedding[0]
        return self._phase(x, self.encoder, self.nct, None, vector, spacing, keys)

    def _phase(
        self,
        x: Tensor,
        encoder: nn.Module,
        heads: PhaseHeads,
        entrance: nn.Module | None,
        vector: Tensor | None,
        spacing: Tensor | None,
        keys: Tensor | None,
    ) -> PhaseOutput:
        """Return one phase's output; `entrance` takes the place of the encoder's first layer."""
        size = x.shape[2:]
        x = pad_to(x, self.padded(size), self.air)
        if isinstance(encoder, ConvEncoder):
            features = Features(encoder(x, vector, input_block=entrance), None)  # type: ignore[arg-type]
        else:
            vit = cast(VisionTransformer, encoder)
            patches = PatchesOfPhase(vit.patch_embed if entrance is None else entrance, vector)
            features = tap(vit, x, taps=self.taps, spacing=spacing, drop_path_keys=keys, patch_embed=patches)
        return heads(features, x, size)

    def padded(self, size: Sequence[int]) -> Triple:
        """Return the size that a volume of `size` voxels is completed to; the maps cover this one."""
        if isinstance(self.encoder, ConvEncoder):
            return conv_size(size, self.encoder)
        return padded_size(size, self.encoder.patch_size)


def _phase_width(encoder: VisionTransformer | ConvEncoder) -> int:
    return encoder.filters[0] if isinstance(encoder, ConvEncoder) else encoder.embed_dim

"""A dual-pathway network for non-contrast CT and CTPA (or any two registered series), and its export.

The idea, two pathways of which the contrast-enhanced one teaches the other, is CPMN's (Bai et al., MICCAI 2024). Its
equations and architecture were not available: what is built here is fmct's own definition.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from torch import Tensor, nn

from fmct.errors import ConfigError, DataError
from fmct.models.adaptation import merged
from fmct.models.patches import PatchEmbedding
from fmct.models.phase_heads import PhaseHeads, PhaseOutput
from fmct.models.single_phase import DualPhaseOutput, SinglePhase
from fmct.models.unet import ConvEncoder, dyn_unet
from fmct.models.vision_transformer import VisionTransformer

SHARES = ("encoder", "none", "all")


@dataclass(frozen=True)
class DualPhaseConfig:
    """A dual-pathway network. See DualPhase for what each key does."""

    share: str = "encoder"
    in_channels_b: int | None = None
    taps: int = 4
    width: int = 64
    stem_channels: int = 8
    hidden: int = 128
    projector_dim: int | None = None
    air: float = 0.0


class DualPhase(SinglePhase):
    """Two pathways over registered volumes: NCT (pathway A) and CTPA (pathway B).

    Args:
        encoder: a pretrained VisionTransformer, or a ConvEncoder.
        share: "encoder": one encoder, told the phase by a vector that is zero at first, and heads per phase; "none":
            two encoders, the second beginning as a copy of the first; "all": one network for both phases, which is not
            told the phase.
        in_channels_b: channels of pathway B's volumes where these are another kind of image, such as PET; its first
            layer is then its own, and begins as pathway A's (over other channel counts: as their mean). None for the
            same kind.
        settings: those of SinglePhase, except phase_embedding.

    What belongs to pathway B alone has a name that begins with `ctpa`, besides row 1 of `phase_embedding`. Raises
    ConfigError for impossible settings.
    """

    def __init__(
        self,
        encoder: VisionTransformer | ConvEncoder,
        *,
        share: str = "encoder",
        in_channels_b: int | None = None,
        **settings: Any,
    ) -> None:
        if share not in SHARES:
            raise ConfigError(f"share: expected one of {', '.join(SHARES)}, got {share!r}.")
        if share == "all" and in_channels_b is not None:
            raise ConfigError(
                "share=all: one network for both phases needs the same kind of input; drop in_channels_b."
            )
        super().__init__(encoder, phase_embedding=share == "encoder", **settings)
        self.share = share
        if self.phase_embedding is not None:
            self.phase_embedding = nn.Parameter(self.phase_embedding.detach().repeat(2, 1))
        self.ctpa_encoder = copy.deepcopy(encoder) if share == "none" else None
        self.ctpa_entrance: nn.Module | None = None
        if in_channels_b is not None:
            self.ctpa_entrance = second_entrance(encoder, in_channels_b)
        self.ctpa: PhaseHeads | None = None
        if share != "all":
            self.ctpa = PhaseHeads(encoder, in_channels=in_channels_b or encoder.in_channels, **self._head_settings)

    def encoders(self) -> list[nn.Module]:
        """The one encoder, or both."""
        return [self.encoder] if self.ctpa_encoder is None else [self.encoder, self.ctpa_encoder]

    def forward(
        self,
        x_n: Tensor,
        x_c: Tensor | None = None,
        *,
        spacing: Tensor | None = None,
        has_pair: Tensor | None = None,
        drop_path_keys: Tensor | None = None,
    ) -> DualPhaseOutput:
        """Return both phases' outputs.

        x_n: (B, C, D, H, W) non-contrast. x_c: (B, C2, D, H, W) on the same grid, or None. spacing: (B, 3) mm.
        has_pair: (B,) bool, which rows of x_c are a scan; None for all. Rows without a pair never enter the CTPA
        pathway, and the non-contrast rows are computed apart from it, so that they do not change by a bit. Raises
        DataError for grids that differ, or a pair that is announced and missing.
        """
        rows = _pair_rows(x_n, x_c, has_pair)
        nct = self._non_contrast(x_n, spacing, drop_path_keys)
        if x_c is None or len(rows) == 0:
            return DualPhaseOutput(nct, None, rows, self._idle(x_n))
        ctpa = self._contrast(
            x_c[rows],
            None if spacing is None else spacing[rows.to(spacing.device)],
            None if drop_path_keys is None else drop_path_keys[rows.to(drop_path_keys.device)],
        )
        return DualPhaseOutput(nct, ctpa, rows, x_n.new_zeros(()))

    def export_nct(self) -> SinglePhase:
        """Return a copy for the non-contrast series: adapters merged, no CTPA parameter, evaluation mode."""
        return export_nct(self)

    def _contrast(self, x: Tensor, spacing: Tensor | None, keys: Tensor | None) -> PhaseOutput:
        encoder = self.encoder if self.ctpa_encoder is None else self.ctpa_encoder
        heads = self.nct if self.ctpa is None else self.ctpa
        vector = None if self.phase_embedding is None else self.phase_embedding[1]
        return self._phase(x, encoder, heads, self.ctpa_entrance, vector, spacing, keys)

    def _idle(self, x: Tensor) -> Tensor:
        """Return zero, in training with a zero gradient for every parameter of the CTPA pathway."""
        zero = x.new_zeros(())
        if not (self.training and torch.is_grad_enabled()):
            return zero
        for name, parameter in self.named_parameters():
            if name.startswith("ctpa") and parameter.requires_grad:
                zero = zero + 0 * parameter.sum()
        return zero


def export_nct(network: DualPhase) -> SinglePhase:
    """Return what `DualPhase.export_nct` describes."""
    exported = SinglePhase.__new__(SinglePhase)
    whole = merged(network)
    nn.Module.__init__(exported)
    exported.encoder, exported.nct = whole.encoder, whole.nct  # type: ignore[assignment]
    exported.taps, exported.air = network.taps, network.air
    exported._head_settings = dict(network._head_settings)
    vector = network.phase_embedding
    exported.phase_embedding = None if vector is None else nn.Parameter(vector.detach()[:1].clone())
    return exported.eval()  # type: ignore[return-value]


def second_entrance(encoder: VisionTransformer | ConvEncoder, in_channels: int) -> nn.Module:
    """Return a first layer like the encoder's for `in_channels`, its weights the encoder's.

    For another number of channels the weight is the mean over the encoder's, scaled so that an image repeated in every
    channel gives what it gave there.
    """
    if isinstance(encoder, ConvEncoder):
        fresh: UnetBasicBlock | PatchEmbedding = dyn_unet(in_channels, 1, encoder.filters, encoder.steps).input_block  # type: ignore[assignment]
        own: nn.Module = encoder.input_block
        name = "conv1.conv.weight"
    else:
        fresh = PatchEmbedding(in_channels, encoder.embed_dim, encoder.patch_size)
        own, name = encoder.patch_embed, "weight"
    state = own.state_dict()
    if in_channels != encoder.in_channels:
        mean = state[name].mean(1, keepdim=True) * (encoder.in_channels / in_channels)
        state[name] = mean.expand(-1, in_channels, -1, -1, -1)
    fresh.load_state_dict(state)
    return fresh.to(next(own.parameters()).device)


def _pair_rows(x_n: Tensor, x_c: Tensor | None, has_pair: Tensor | None) -> Tensor:
    """Return the (R,) int64 rows that have a pair. Raises DataError on any misfit."""
    if has_pair is not None and (has_pair.dtype != torch.bool or has_pair.shape != x_n.shape[:1]):
        raise DataError(f"has_pair: expected ({len(x_n)},) bool, got {tuple(has_pair.shape)} of {has_pair.dtype}.")
    if x_c is None:
        if has_pair is not None and bool(has_pair.any()):
            raise DataError(f"has_pair announces {int(has_pair.sum())} CTPA volumes, but x_c is None.")
        return torch.empty(0, dtype=torch.int64, device=x_n.device)
    if len(x_c) != len(x_n) or x_c.shape[2:] != x_n.shape[2:]:
        raise DataError(
            f"the CTPA lies on the NCT's grid: expected {len(x_n)} volumes of {tuple(x_n.shape[2:])} voxels, got "
            f"{len(x_c)} of {tuple(x_c.shape[2:])}. Resample the CTPA onto the NCT first."
        )
    if has_pair is None:
        return torch.arange(len(x_n), device=x_c.device)
    return has_pair.to(x_c.device).nonzero().flatten()


def build_dual_phase(
    encoder: VisionTransformer | ConvEncoder, config: DualPhaseConfig, *, outputs: int = 1, classes: int = 1
) -> DualPhase:
    """Return a config's network on `encoder`. Raises ConfigError."""
    return DualPhase(encoder, outputs=outputs, classes=classes, **vars(config))

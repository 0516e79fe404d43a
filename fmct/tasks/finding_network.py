"""The kind "finding_heads" of fmct.tasks.kinds: an encoder, and one two-class head a finding on its tokens.

Head-CT findings train as independent heads (fmct.tasks.finding_heads), on features that were computed once; what
predicts is this network, which computes them. Batch standardisation then uses the averages of training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fmct.config import plain
from fmct.errors import ArtefactError, ConfigError
from fmct.models.encoder import EncoderConfig
from fmct.models.pooling import AttentivePooling, LinearHead, pooling_heads
from fmct.models.vision_transformer import VisionTransformer
from fmct.shapes import TripleF
from fmct.tasks.backbone import build_backbone

HEADS = ("linear", "attentive")


class FindingHead(nn.Module):
    """Two logits. linear: batch-standardised CLS, then a linear layer; attentive: one learned query over all tokens."""

    def __init__(self, embed_dim: int, kind: str, *, num_heads: int) -> None:
        super().__init__()
        if kind not in HEADS:
            raise ConfigError(f"head: expected one of {', '.join(HEADS)}, got {kind!r}.")
        self.pooling = AttentivePooling(embed_dim, num_heads, norm="batch") if kind == "attentive" else None
        self.linear_head = LinearHead(embed_dim, 2, norm="batch")

    def forward(self, cls: Tensor, patches: Tensor | None) -> Tensor:
        """Return (B, 2) logits of (B, E) CLS tokens and, for an attentive head, (B, N, E) patches."""
        if self.pooling is None:
            return self.linear_head(cls)
        if patches is None:
            raise ConfigError("an attentive head reads patch tokens, and only CLS was kept.")
        return self.linear_head(self.pooling(torch.cat([cls[:, None], patches], dim=1))[0])


class FindingNetwork(nn.Module):
    """An encoder and `findings` heads; evaluation alone, since heads are trained apart."""

    def __init__(self, encoder: VisionTransformer, findings: int, *, kind: str) -> None:
        super().__init__()
        width = encoder.num_features
        self.encoder = encoder
        self.heads = nn.ModuleList(FindingHead(width, kind, num_heads=pooling_heads(width)) for _ in range(findings))

    def forward(self, x: Tensor, spacing: Tensor | None = None) -> Tensor:
        """Return (B, T) logits of windows (B, C, D, H, W); their sigmoid is the second class's softmax.

        A linear head in evaluation is affine in CLS, so the mean of its logits over tiles is its logit of mean CLS.
        """
        tokens = self.encoder(x, spacing)
        pairs = torch.stack([head(tokens.cls, tokens.patches) for head in self.heads], dim=1)
        return pairs[..., 1] - pairs[..., 0]


def describe_network(encoder: EncoderConfig, findings: Sequence[str], *, kind: str) -> dict[str, Any]:
    """Return the architecture that `build_predictor` builds from."""
    return {"encoder": plain(encoder), "head": kind, "outputs": len(findings)}


def predicting_weights(encoder: VisionTransformer, heads: nn.ModuleList) -> dict[str, Tensor]:
    """Return a FindingNetwork's state of trained heads on an encoder, on the CPU; averages of the data included."""
    parts = {"encoder": encoder.state_dict(), "heads": heads.state_dict()}
    return {f"{part}.{name}": value.detach().cpu() for part, state in parts.items() for name, value in state.items()}


def build_predictor(architecture: Mapping[str, Any], *, in_channels: int, spacing_mm: TripleF) -> nn.Module:
    """Return the network that predicts, untrained (see fmct.tasks.kinds.TaskKind)."""
    encoder = build_backbone(architecture, in_channels=in_channels, spacing_mm=spacing_mm)
    if not isinstance(encoder, VisionTransformer):
        raise ArtefactError("architecture: findings' heads read a transformer's tokens; there is none.")
    return FindingNetwork(encoder, int(architecture["outputs"]), kind=str(architecture["head"])).eval()


def trained_predictor(
    architecture: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    *,
    in_channels: int,
    spacing_mm: TripleF,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network that predicts, and its architecture (see fmct.tasks.kinds.TaskKind).

    parameters: of `predicting_weights`, which a run writes when it ends; a checkpoint holds neither a frozen encoder
    nor each finding's best head. Raises ArtefactError when they do not fit.
    """
    network = build_predictor(architecture, in_channels=in_channels, spacing_mm=spacing_mm)
    try:
        network.load_state_dict(dict(parameters))
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ArtefactError(f"the run's parameters do not fit the network of its task.json: {first}") from None
    return network, dict(architecture)

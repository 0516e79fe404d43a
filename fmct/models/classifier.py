"""Classifiers: an encoder, a way to one vector, and logits."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fmct.errors import ConfigError
from fmct.models.adaptation import EncoderHolder
from fmct.models.bag import MilHead
from fmct.models.pooling import AttentivePooling, LinearHead, pooling_heads
from fmct.models.vision_transformer import VisionTransformer

HEADS = ("linear", "attentive", "mil")
FEATURES = ("cls", "mean", "cls+mean")


class ClassifierOutput(NamedTuple):
    """logits (B, outputs), or (bags, outputs) for a MIL head; features (B, E') that they come from.

    attention: (B, heads, N) over patch tokens for an attentive head, (B,) over the rows of each bag for a MIL head,
    else None.
    """

    logits: Tensor
    attention: Tensor | None
    features: Tensor


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier's head. See Classifier for what each key does."""

    head: str = "linear"
    features: str = "cls+mean"
    norm: str = "none"
    num_heads: int | None = None
    hidden: int = 128


class Classifier(EncoderHolder):
    """Logits of volumes, or of bags of tiles.

    Args:
        encoder: any encoder with the VisionTransformer's forward pass.
        outputs: logits.
        head: "linear" on `features`; "attentive": one learned query over the patch tokens, then linear; "mil": gated
            attention over the tiles of a bag, each tile given by `features`, then linear.
        features: "cls", "mean" (of the patch tokens) or both, side by side, for the linear and MIL heads.
        norm: "none", "batch" or "layer": of the features before the linear layer, and of the tokens before attention.
            FM-HCT's heads are head "linear", features "cls", norm "batch", and head "attentive", norm "batch".
        num_heads: of attentive pooling; None for one head per 64 features.
        hidden: width of the MIL head's attention.

    Raises ConfigError for impossible settings.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        outputs: int,
        head: str = "linear",
        features: str = "cls+mean",
        norm: str = "none",
        num_heads: int | None = None,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        if head not in HEADS or features not in FEATURES or outputs < 1:
            raise ConfigError(
                f"classifier: expected head among {', '.join(HEADS)}, features among {', '.join(FEATURES)} and at "
                f"least one output; got {head!r}, {features!r} and {outputs}."
            )
        if head == "mil" and norm == "batch":
            raise ConfigError("classifier: a MIL head has bags of any number of tiles; norm is none or layer.")
        self.encoder = encoder
        self.kind = head
        self.features = features
        dim = encoder.embed_dim
        width = 2 * dim if features == "cls+mean" and head != "attentive" else dim
        if head == "attentive":
            self.pooling = AttentivePooling(dim, num_heads or pooling_heads(dim), norm=norm)
        self.head: LinearHead | MilHead
        self.head = MilHead(width, outputs, hidden) if head == "mil" else LinearHead(width, outputs, norm=norm)

    def forward(
        self,
        x: Tensor,
        spacing: Tensor | None = None,
        bags: Tensor | None = None,
        *,
        num_bags: int | None = None,
        drop_path_keys: Tensor | None = None,
    ) -> ClassifierOutput:
        """Return the output for (B, C, D, H, W) volumes with `spacing` (B, 3) mm; see `classify` for bags."""
        tokens = self.encoder(x, spacing, drop_path_keys=drop_path_keys)
        return self.classify(tokens.cls, tokens.patches, bags, num_bags=num_bags)

    def classify(
        self, cls: Tensor, patches: Tensor, bags: Tensor | None = None, *, num_bags: int | None = None
    ) -> ClassifierOutput:
        """Return the output for the encoder's tokens, computed here or kept from before: (B, E) and (B, N, E).

        bags: (B,) int64, whose bag a row is, for a MIL head; None makes every row a bag of its own. num_bags: None for
        the largest number plus one. Raises ConfigError when another head is given bags.
        """
        if self.kind == "attentive":
            features, attention = self.pooling(patches)
        else:
            features, attention = self._gathered(cls, patches), None
        if isinstance(self.head, MilHead):
            bags = torch.arange(len(features), device=features.device) if bags is None else bags
            logits, attention = self.head(features, bags, int(bags.max()) + 1 if num_bags is None else num_bags)
            return ClassifierOutput(logits, attention, features)
        if bags is not None:
            raise ConfigError(f"a {self.kind} head decides on each volume by itself; bags need head 'mil'.")
        return ClassifierOutput(self.head(features), attention, features)

    def _gathered(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Return the (B, E or 2 E) features that the head reads."""
        if self.features == "cls":
            return cls
        mean = patches.mean(1)
        return mean if self.features == "mean" else torch.cat([cls, mean], dim=1)


def build_classifier(encoder: VisionTransformer, config: ClassifierConfig, *, outputs: int) -> Classifier:
    """Return a config's classifier on `encoder`. Raises ConfigError."""
    return Classifier(encoder, outputs=outputs, **vars(config))

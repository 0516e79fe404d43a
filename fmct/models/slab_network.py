"""Slab classifiers whose attention is part of the graph: a 2D ResNet on slices side by side, or a 3D transformer.

After Shi et al. 2020 (arXiv 2006.00074): a ResNet-18 at total stride 16, mean pooling and a linear layer, and an
attention map that a loss can hold to the lesion. The paper's text was not available: the map's formula is fmct's.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from fmct.errors import ConfigError
from fmct.models.adaptation import EncoderHolder
from fmct.models.pooling import AttentivePooling, LinearHead, LogitLinear, pooling_heads
from fmct.models.vision_transformer import VisionTransformer

STRIDE = 16  # voxels in-plane of a cell of the ResNet's map
ACTIVATIONS = ("sigmoid", "relu_max")
NORMS = ("batch", "group")
_GROUPS, _PLAIN_STEM = 4, 64


class _GroupNorm(nn.GroupNorm):
    """Group norm in the form in which timm builds a network's norms."""

    def __init__(self, channels: int, **settings: Any) -> None:
        super().__init__(_GROUPS, channels, **settings)


class SlabOutput(NamedTuple):
    """What a network says of B slabs.

    logits: (B, 1). attention: (B, gd, gh, gw) in [0, 1], in the graph. features: (B, C, gh, gw), what a series reader
    takes.
    """

    logits: Tensor
    attention: Tensor
    features: Tensor


@dataclass(frozen=True)
class SlabNetworkConfig:
    """A slab classifier. The ResNet's keys play no part with an encoder, and num_heads none without.

    layers, channels: blocks and width of the four stages; the defaults are timm's resnet18. norm: `batch` or `group`.
    classes: 1 logit, or 2 under a softmax as published, whose difference is the logit. activation: from the class
    activation map to [0, 1]: `sigmoid`, or `relu_max`, rectified and divided by its largest value where that is above
    1.
    num_heads: of attentive pooling, None for one head per 64 features.
    """

    layers: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    channels: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    norm: str = "batch"
    classes: int = 1
    activation: str = "sigmoid"
    num_heads: int | None = None


class SlabNetwork(EncoderHolder):
    """A ResNet over a slab's slices as channels, at total stride 16, with the class activation map of its logit.

    The last stage is dilated instead of strided, so that 384 voxels become 24 cells. The logit is linear in the mean of
    the map F over its cells, so that Σ_k w_k F_k is, cell by cell, what each place adds to it (CAM, Zhou et al. 2016;
    Grad-CAM's weights are these, divided by the number of cells).

    Args:
        in_channels: intensity windows × slices.
        layers, channels, norm, classes, activation: see SlabNetworkConfig.

    Raises ConfigError for impossible settings.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        layers: list[int] | tuple[int, ...] = (2, 2, 2, 2),
        channels: list[int] | tuple[int, ...] = (64, 128, 256, 512),
        norm: str = "batch",
        classes: int = 1,
        activation: str = "sigmoid",
    ) -> None:
        super().__init__()
        if len(layers) != 4 or len(channels) != 4 or min(*layers, *channels) < 1:
            raise ConfigError(f"slab network: expected four numbers of layers and of channels; got {layers, channels}.")
        if norm not in NORMS or activation not in ACTIVATIONS or classes not in (1, 2):
            raise ConfigError(
                f"slab network: expected norm among {', '.join(NORMS)}, activation among {', '.join(ACTIVATIONS)} and "
                f"1 or 2 classes; got {norm!r}, {activation!r} and {classes}."
            )
        if channels[0] % 2 or (norm == "group" and any(width % (2 * _GROUPS) for width in channels)):
            raise ConfigError(
                f"slab network: expected an even first width, with group norm multiples of {2 * _GROUPS}: {channels}."
            )
        self.in_channels = in_channels
        self.feature_channels = channels[-1]
        self.activation = activation
        self.encoder = ResNet(
            BasicBlock,  # type: ignore[arg-type]  # timm's annotation means the class
            tuple(layers),
            num_classes=0,
            in_chans=in_channels,
            output_stride=STRIDE,
            global_pool="",
            # timm's plain stem has 64 channels whatever else is said; a narrower network has the deep one, 3 × 3 × 3.
            stem_type="" if channels[0] == _PLAIN_STEM else "deep",
            stem_width=channels[0] // 2,
            channels=tuple(channels),
            norm_layer=nn.BatchNorm2d if norm == "batch" else _GroupNorm,
        )
        self.head = LogitLinear(channels[-1], classes)
        nn.init.normal_(self.head.weight, std=channels[-1] ** -0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, spacing: Tensor | None = None, *, drop_path_keys: Tensor | None = None) -> SlabOutput:
        """Return the output for (B, C, D, H, W) slabs; `spacing` and keys are taken and play no part.

        Raises ConfigError for slabs of another number of slices.
        """
        del spacing, drop_path_keys
        if x.ndim != 5 or x.shape[1] * x.shape[2] != self.in_channels:
            raise ConfigError(
                f"slab network: built for {self.in_channels} channels (windows × slices); got slabs {tuple(x.shape)}."
            )
        features = self.encoder(x.flatten(1, 2))
        scores = self.head(features.mean((2, 3)))
        logits = scores if scores.shape[1] == 1 else scores[:, 1:] - scores[:, :1]
        return SlabOutput(logits, self.attention(features)[:, None], features)

    def activation_map(self, features: Tensor) -> Tensor:
        """Return the raw map Σ_k w_k F_k (B, gh, gw) of embolism, w the weights of its own output."""
        return (features.float() * self.head.weight[-1].float()[:, None, None]).sum(1)  # not a product to autocast

    def attention(self, features: Tensor) -> Tensor:
        """Return the map in [0, 1]."""
        raw = self.activation_map(features)
        if self.activation == "sigmoid":
            return raw.sigmoid()
        raw = raw.relu()
        # Below one logit a map is not stretched: the noise of a slab without anything would become its attention.
        return raw / raw.detach().amax((1, 2), keepdim=True).clamp(min=1.0)


class TokenSlabNetwork(EncoderHolder):
    """A 3D transformer on slabs: attentive pooling of its patch tokens decides, and its weights are the attention.

    The weights are averaged over heads and divided by their largest (held fixed). features: tokens averaged along z.

    Args:
        encoder: any encoder with the VisionTransformer's forward pass.
        num_heads: of attentive pooling; None for one head per 64 features.
    """

    def __init__(self, encoder: VisionTransformer, *, num_heads: int | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.feature_channels = encoder.embed_dim
        self.pooling = AttentivePooling(encoder.embed_dim, num_heads or pooling_heads(encoder.embed_dim), norm="layer")
        self.head = LinearHead(encoder.embed_dim, 1)

    def forward(self, x: Tensor, spacing: Tensor | None = None, *, drop_path_keys: Tensor | None = None) -> SlabOutput:
        """Return the output for (B, C, D, H, W) slabs with `spacing` (B, 3) mm."""
        tokens = self.encoder(x, spacing, drop_path_keys=drop_path_keys)
        pooled, weights = self.pooling(tokens.patches)
        attention = weights.mean(1)
        attention = attention / attention.detach().amax(1, keepdim=True)
        features = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid).mean(2)
        return SlabOutput(self.head(pooled), attention.unflatten(1, tokens.grid), features)


def build_slab_network(
    config: SlabNetworkConfig, *, in_channels: int, slices: int, encoder: VisionTransformer | None = None
) -> SlabNetwork | TokenSlabNetwork:
    """Return a config's network, on `encoder` where one is given. Raises ConfigError."""
    if encoder is not None:
        return TokenSlabNetwork(encoder, num_heads=config.num_heads)
    settings = {key: value for key, value in vars(config).items() if key != "num_heads"}
    return SlabNetwork(in_channels * slices, **settings)

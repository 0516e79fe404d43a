"""What a downstream network is built on, as a plain description: a transformer with a configuration, or a U-Net.

The description stands in RUN/task.json and in a model folder's config.json, so that export and prediction build the
same network again: {"encoder": {...EncoderConfig}} or {"unet": {...UNetConfig}}, and {"lora": {...}} while adapters
train.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fmct.config import build, plain
from fmct.errors import ArtefactError
from fmct.models.adaptation import EncoderHolder, adapt, merged
from fmct.models.encoder import EncoderConfig, VisionTransformer, build_encoder
from fmct.models.unet import ConvEncoder, UNetConfig

NETWORK = "network."  # of a parameter's name in a task, before the network's own


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation: W + (alpha / rank) B A on `targets` (of q, k, v, proj) of every block's attention."""

    rank: int = 8
    alpha: float = 16.0
    targets: list[str] = field(default_factory=lambda: ["q", "v"])


def describe(
    backbone: EncoderConfig | UNetConfig, *, mode: str = "full", lora: LoraConfig | None = None
) -> dict[str, Any]:
    """Return the description of a backbone that trains in `mode` (frozen, lora, full)."""
    tree: dict[str, Any] = {"unet" if isinstance(backbone, UNetConfig) else "encoder": plain(backbone)}
    if mode == "lora":
        tree["lora"] = plain(lora or LoraConfig())
    return tree


def configured(architecture: Mapping[str, Any]) -> EncoderConfig | UNetConfig:
    """Return the backbone's configuration. Raises ArtefactError when the description names none."""
    if architecture.get("unet"):
        return build(UNetConfig, architecture["unet"], "the architecture's unet")
    if architecture.get("encoder"):
        return build(EncoderConfig, architecture["encoder"], "the architecture's encoder")
    raise ArtefactError("architecture: describes neither an encoder nor a unet.")


def build_backbone(
    architecture: Mapping[str, Any], *, in_channels: int, spacing_mm: Sequence[float]
) -> VisionTransformer | ConvEncoder:
    """Return the untrained backbone of a description. Raises ArtefactError or ConfigError."""
    config = configured(architecture)
    if isinstance(config, UNetConfig):
        return ConvEncoder(in_channels, filters=config.filters, strides=config.strides)
    return build_encoder(config, in_channels, spacing_mm)


def load_trained(
    network: EncoderHolder, architecture: Mapping[str, Any], parameters: Mapping[str, torch.Tensor]
) -> EncoderHolder:
    """Load a run's parameters (names as in the task) into its network, and return it with adapters merged.

    Raises ArtefactError when they do not fit.
    """
    if architecture.get("lora"):
        lora = build(LoraConfig, architecture["lora"], "the architecture's lora")
        adapt(network, "lora", rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
    state = {name.removeprefix(NETWORK): value for name, value in parameters.items() if name.startswith(NETWORK)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ArtefactError(f"the run's parameters do not fit the network of its task.json: {first}") from None
    whole = merged(network)
    assert isinstance(whole, EncoderHolder)
    return whole


def without_training(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description without what only training needs: its adapters are merged."""
    return {key: value for key, value in architecture.items() if key != "lora"}

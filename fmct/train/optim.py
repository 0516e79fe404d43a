"""AdamW and its parameter groups: layer-wise decay, what is not decayed, and a last layer that can be held still."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fmct.errors import ConfigError

INPUT_LAYER = re.compile(r"patch_embed|positions|pos_embed|cls_token|mask_token|register")
BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
HEAD = re.compile(r"head|decoder")
ENCODER = re.compile(r"(?:^|[._])encoder\.")
ADAPTER = re.compile(r"lora_")
UNDECAYED = re.compile(r"bias$|norm|gamma")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. The learning rate and the weight decay themselves are schedules; here is what multiplies them.

    layer_decay r: block i of L gets r^(L − i), the patch and position embedding and the special tokens r^(L + 1), final
    norm and heads 1. patch_embed_multiplier comes on top for the patch embedding, encoder_multiplier for a pretrained
    encoder inside a network, whose other parts, adapters included, are new and may learn faster. last_layer names the
    parameters whose learning rate is `last_layer_learning_rate`, 0 while they are frozen. clip bounds the global
    gradient norm.
    """

    betas: list[float] | None = None
    eps: float = 1e-8
    layer_decay: float = 1.0
    patch_embed_multiplier: float = 1.0
    encoder_multiplier: float = 1.0
    last_layer: str = "prototypes"
    clip: float = 3.0

    def __post_init__(self) -> None:
        if self.betas is not None and (len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas)):
            raise ConfigError(f"optim.betas: expected two numbers in [0, 1), got {list(self.betas)}.")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay: expected a number in (0, 1], got {self.layer_decay}.")
        if self.clip < 0 or self.eps <= 0 or min(self.patch_embed_multiplier, self.encoder_multiplier) < 0:
            raise ConfigError("optim: clip and the multipliers must not be negative, and eps must be positive.")


def layer_number(name: str, blocks: int) -> int:
    """Return the depth of a parameter: 0 at the input, i + 1 in block i, `blocks` + 1 behind them."""
    if HEAD.search(name):
        return blocks + 1
    if found := BLOCK.search(name):
        return int(found.group(1)) + 1
    return 0 if INPUT_LAYER.search(name) else blocks + 1


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    layer_decay: float = 1.0,
    patch_embed_multiplier: float = 1.0,
    encoder_multiplier: float = 1.0,
    last_layer: str = "prototypes",
) -> list[dict[str, Any]]:
    """Return optimiser groups with keys params, names, lr_multiplier, decay_multiplier, last_layer.

    Parameters with equal multipliers share a group, in the order of first appearance. Biases, norms and LayerScale
    (names with `norm` or `gamma`) are not decayed; CLS, mask, register and position parameters are, as in DINOv2.
    Where the network holds an encoder (a part of that name), layer-wise decay and encoder_multiplier are for what is
    inside it and not an adapter; frozen parameters (requires_grad False) are in no group.
    """
    every = list(named_parameters)
    named = [(name, parameter) for name, parameter in every if parameter.requires_grad]
    found = [BLOCK.search(name) for name, _ in every if not HEAD.search(name)]
    blocks = 1 + max((int(match.group(1)) for match in found if match), default=-1)
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    holds_encoder = any(ENCODER.search(name) for name, _ in every)
    for name, parameter in named:
        multiplier = 1.0
        if not ADAPTER.search(name) and (ENCODER.search(name) or not holds_encoder):
            multiplier = layer_decay ** (blocks + 1 - layer_number(name, blocks))
            multiplier *= patch_embed_multiplier if "patch_embed" in name else 1.0
            multiplier *= encoder_multiplier if holds_encoder else 1.0
        decay = 0.0 if UNDECAYED.search(name) else 1.0
        frozen = bool(last_layer) and last_layer in name
        key = (multiplier, decay, frozen)
        if key not in groups:
            groups[key] = {"params": [], "names": [], "lr_multiplier": multiplier, "decay_multiplier": decay}
            groups[key]["last_layer"] = frozen
        groups[key]["params"].append(parameter)
        groups[key]["names"].append(name)
    return list(groups.values())


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """Return torch's AdamW over the merged groups. Rates are set before each step by `apply_values`."""
    groups = parameter_groups(
        named_parameters,
        layer_decay=config.layer_decay,
        patch_embed_multiplier=config.patch_embed_multiplier,
        encoder_multiplier=config.encoder_multiplier,
        last_layer=config.last_layer,
    )
    first, second = config.betas or (0.9, 0.999)
    # Fused: one pass over memory instead of some ten, and nothing besides; it wants the count of steps where they are.
    return torch.optim.AdamW(groups, lr=0.0, betas=(first, second), eps=config.eps, weight_decay=0.0, fused=True)


def apply_values(groups: Iterable[dict[str, Any]], values: Mapping[str, float]) -> None:
    """Set lr and weight_decay of every group from the scheduled `values` and the group's multipliers.

    A frozen last layer has learning rate 0; AdamW's decoupled decay is then 0 too, while its moments go on.
    """
    rate, decay = values["learning_rate"], values.get("weight_decay", 0.0)
    for group in groups:
        base = values.get("last_layer_learning_rate", rate) if group["last_layer"] else rate
        group["lr"] = base * group["lr_multiplier"]
        group["weight_decay"] = decay * group["decay_multiplier"]

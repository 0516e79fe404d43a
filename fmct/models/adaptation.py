"""How much of an encoder a downstream task trains: nothing, low-rank adapters, or all of it; and the control without
pretraining."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from fmct.errors import ConfigError
from fmct.models.lora import MARK, add_lora, merge_lora

MODES = ("frozen", "lora", "full")


class EncoderHolder(nn.Module):
    """A network around one or more encoders, some of which may be frozen.

    A frozen encoder is left in evaluation mode when the network trains: no drop-path, no random rescaling of
    positions, no gradient and no memory for one.
    """

    frozen = False

    def encoders(self) -> list[nn.Module]:
        """The encoders inside; `encoder` alone where nothing else is said."""
        return [self.get_submodule("encoder")]

    def train(self, mode: bool = True) -> "EncoderHolder":
        """Set training mode; frozen encoders stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for encoder in self.encoders():
                encoder.eval()
        return self


def adapt(
    model: EncoderHolder,
    mode: str,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("q", "v"),
) -> EncoderHolder:
    """Say what of the encoders trains, in place, and return the model.

    frozen: nothing. lora: adapters of `rank`, which are added here, on the attention's `targets`. full: everything.
    What is outside the encoders trains in any case. What does not train has requires_grad False and so is in no
    optimiser group. Raises ConfigError for another mode.
    """
    if mode not in MODES:
        raise ConfigError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}.")
    for encoder in model.encoders():
        if mode == "lora":
            add_lora(encoder, rank=rank, alpha=alpha, targets=targets)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(mode == "full" or (mode == "lora" and MARK in name))
    model.frozen = mode == "frozen"
    model.train(model.training)
    return model


def merged(model: nn.Module) -> nn.Module:
    """Return a copy of the model whose adapters are merged into plain layers, every parameter trainable."""
    plain = merge_lora(copy.deepcopy(model))
    plain.requires_grad_(True)
    if isinstance(plain, EncoderHolder):
        plain.frozen = False
    return plain


def from_scratch(encoder: nn.Module, *, seed: int, layer_scale: float | None = None) -> nn.Module:
    """Return a copy of the encoder with initial weights: the control that pretraining is measured against.

    seed: of the weights; the caller's random state is left alone. layer_scale: initial LayerScale, None for the one
    that pretraining began with. Raises ConfigError for an encoder that cannot be initialised.
    """
    fresh = copy.deepcopy(encoder)
    initialise = getattr(fresh, "init_weights", None)
    if initialise is None:
        raise ConfigError(f"from scratch: {type(encoder).__name__} has no init_weights.")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        fresh.cpu()
        initialise()
        if layer_scale is not None:
            for name, parameter in fresh.named_parameters():
                if name.endswith("gamma"):
                    parameter.fill_(layer_scale)
    return fresh.to(next(encoder.parameters()).device)

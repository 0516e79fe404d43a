"""Low-rank adaptation of attention (Hu et al. 2022): W + (alpha / rank) · B A, with B = 0 at the start.

The encoder's fused projection has its rows in the order q, k, v; a part is adapted by adding to its own rows. The
adapted layer is still a linear layer whose weight and bias keep their names, so that an adapted encoder reads the same
files, and a merged one is an encoder like any other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmct.errors import ConfigError, WeightsError

PARTS = ("q", "k", "v", "proj")
MARK = "lora_"


class LoraLinear(nn.Linear):
    """A linear layer whose output rows fall into equal `sections`, some of them adapted: {name: section}."""

    def __init__(self, linear: nn.Linear, parts: Mapping[str, int], *, sections: int, rank: int, alpha: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.parts = dict(parts)
        self.sections = sections
        self.scale = alpha / rank
        rows = linear.out_features // sections
        like = linear.weight
        self.lora_a = nn.ParameterDict({name: nn.Parameter(like.new_empty(rank, like.shape[1])) for name in parts})
        self.lora_b = nn.ParameterDict({name: nn.Parameter(like.new_zeros(rows, rank)) for name in parts})
        for down in self.lora_a.values():
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out) rows."""
        rows = list(super().forward(input).chunk(self.sections, dim=-1))
        for name, section in self.parts.items():
            change = functional.linear(functional.linear(input, self.lora_a[name]), self.lora_b[name])
            rows[section] = rows[section] + self.scale * change
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)

    def merged(self) -> nn.Linear:
        """Return a plain linear layer with the same output; the product is taken in float64 and rounded once."""
        sections = list(self.weight.detach().double().chunk(self.sections))
        for name, section in self.parts.items():
            change = self.lora_b[name].detach().double() @ self.lora_a[name].detach().double()
            sections[section] = sections[section] + self.scale * change
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight = nn.Parameter(torch.cat(sections).to(self.weight.dtype))
        plain.bias = self.bias
        return plain


def add_lora(
    encoder: nn.Module, *, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("q", "v")
) -> nn.Module:
    """Adapt the attention of every block of `encoder`, in place; return it. At first the output is what it was.

    rank: of the change. alpha: the change is scaled by alpha / rank. targets: among q, k, v and proj. Nothing is frozen
    here; see `fmct.models.adaptation`. Raises ConfigError for other targets, or an encoder that has adapters already.
    """
    unknown = sorted(set(targets) - set(PARTS))
    if unknown or not targets or rank < 1 or alpha <= 0:
        raise ConfigError(
            f"LoRA: expected a positive rank and alpha and targets among {', '.join(PARTS)}; got rank {rank}, alpha "
            f"{alpha}, targets {list(targets)}."
        )
    if any(isinstance(module, LoraLinear) for module in encoder.modules()):
        raise ConfigError("LoRA: this encoder has adapters already; merge them first.")
    attentions = [module for module in encoder.modules() if _is_attention(module)]
    if not attentions:
        raise ConfigError("LoRA needs an encoder with attention; this one has none.")
    fused = {name: "qkv".index(name) for name in ("q", "k", "v") if name in targets}
    for attention in attentions:
        if fused:
            attention.qkv = LoraLinear(attention.qkv, fused, sections=3, rank=rank, alpha=alpha)  # type: ignore[arg-type]
        if "proj" in targets:
            attention.proj = LoraLinear(attention.proj, {"proj": 0}, sections=1, rank=rank, alpha=alpha)  # type: ignore[arg-type]
    return encoder


def merge_lora(module: nn.Module) -> nn.Module:
    """Replace every adapted layer inside `module` by a plain one with the same output, in place; return it."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.merged())
    return module


def lora_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the (name, parameter) pairs of the adapters inside `module`."""
    return ((name, parameter) for name, parameter in module.named_parameters() if MARK in name)


def lora_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the adapters' tensors by name, detached copies: all that LoRA changes in an encoder."""
    return {name: parameter.detach().clone() for name, parameter in lora_parameters(module)}


def load_lora(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take what `lora_state` gave. Raises WeightsError when names or shapes differ."""
    mine = dict(lora_parameters(module))
    differing = sorted(set(mine) ^ set(state)) or [n for n in mine if mine[n].shape != state[n].shape]
    if differing:
        raise WeightsError(
            f"adapters do not fit: {len(differing)} tensors are missing, unexpected or of another shape, the first "
            f"being {differing[0]}. Add adapters of the same rank and targets first."
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(state[name])


def _is_attention(module: nn.Module) -> bool:
    return isinstance(getattr(module, "qkv", None), nn.Linear) and isinstance(getattr(module, "proj", None), nn.Linear)

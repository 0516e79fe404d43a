"""Floating-point operations of encoders, heads and a training step; a multiply-add counts two.

Only matrix products count (norms, softmax and GELU do not). Recomputation under activation checkpointing is left out
and drop-path is not subtracted: this is the model-FLOPs convention behind MFU.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fmct.errors import ConfigError
from fmct.models.adaptation import MODES
from fmct.models.encoder import EncoderConfig, dimensions
from fmct.models.layers import mlp_width
from fmct.shapes import patch_grid


def encoder_flops(config: EncoderConfig, size: Sequence[int], *, in_channels: int) -> int:
    """Return the operations of one forward pass over one crop of `size` voxels (z, y, x).

    Per block and with T tokens (CLS and registers included), width D and MLP width h: 8 T D² for the projections,
    4 T D h (SwiGLU 6 T D h) for the MLP, 4 T² D for attention; the patch embedding is 2 N D · C · voxels.
    """
    dim, depth, _ = dimensions(config)
    patches = prod(patch_grid(size, config.patch_size))
    tokens = patches + 1 + config.num_registers
    hidden = mlp_width(dim, config.mlp_ratio, swiglu=config.swiglu)
    block = 8 * tokens * dim**2 + (6 if config.swiglu else 4) * tokens * dim * hidden + 4 * tokens**2 * dim
    return depth * block + 2 * patches * dim * in_channels * prod(config.patch_size)


def head_flops(
    rows: int,
    *,
    in_dim: int,
    hidden_dim: int = 2048,
    bottleneck_dim: int = 256,
    num_prototypes: int = 65536,
    layers: int = 3,
) -> int:
    """Return the operations of one forward pass of a ProjectionHead over `rows` tokens."""
    widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim, num_prototypes]
    return 2 * rows * sum(a * b for a, b in pairwise(widths))


def reconstruction_flops(rows: int, *, embed_dim: int, patch_size: Sequence[int], channels: int) -> int:
    """Return the operations of one forward pass of a ReconstructionHead over `rows` tokens."""
    return 2 * rows * embed_dim * channels * prod(patch_size)


def step_flops(student: int, teacher: int) -> int:
    """Return the operations of a training step: the student's forward and, twice that, backward; the teacher's forward.

    Both arguments are forward operations of encoder and heads together, for all samples of the step.
    """
    return 3 * student + teacher


def forward_flops(module: nn.Module, *inputs: Any, **named: Any) -> int:
    """Return the operations of one forward pass of any module, for tensors like `inputs` and `named`.

    Counted by torch on tensors without data, so that it costs neither memory nor time; convolutions are counted too.
    Inputs on which the module branches (has_pair, bags) have no values here and are left out.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    hollow = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    arguments = [_hollow(value) for value in inputs]
    keywords = {name: _hollow(value) for name, value in named.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(module, hollow, tuple(arguments), keywords)
    return counter.get_total_flops()


def finetune_flops(encoder: int, heads: int, *, mode: str = "full", adapters: int = 0) -> int:
    """Return the operations of one fine-tuning step from forward operations of all samples of the step.

    A trained part costs its forward pass and, twice that, its backward: gradients of inputs and of weights. Under a
    LoRA encoder gradients of inputs are still needed and those of its weights are not: twice its forward, besides
    three times that of the `adapters`. A frozen encoder costs its forward pass alone. Raises ConfigError for another
    mode.
    """
    if mode not in MODES:
        raise ConfigError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}.")
    passes = {"frozen": 1, "lora": 2, "full": 3}[mode]
    return passes * encoder + 3 * (heads + adapters)


def self_distillation_flops(
    config: EncoderConfig,
    *,
    in_channels: int,
    global_size: Sequence[int],
    local_size: Sequence[int] | None,
    global_views: int = 2,
    local_views: int = 8,
    masked_share: float = 0.24,
    hidden_dim: int = 2048,
    bottleneck_dim: int = 256,
    num_prototypes: int = 65536,
    layers: int = 3,
) -> int:
    """Return the operations of one self-distillation step (DINO and iBOT) for one sample.

    `masked_share` is the mean share of patches, over all global crops, that go through the patch head; both heads are
    taken to be alike. Without `local_size` there are no local views.
    """
    dim, _, _ = dimensions(config)
    whole = global_views * encoder_flops(config, global_size, in_channels=in_channels)
    local_views = local_views if local_size is not None else 0
    part = local_views * encoder_flops(config, local_size, in_channels=in_channels) if local_size is not None else 0
    masked = global_views * prod(patch_grid(global_size, config.patch_size)) * masked_share
    one = head_flops(
        1,
        in_dim=dim,
        hidden_dim=hidden_dim,
        bottleneck_dim=bottleneck_dim,
        num_prototypes=num_prototypes,
        layers=layers,
    )
    student = whole + part + round((global_views + local_views + masked) * one)
    return step_flops(student, whole + round((global_views + masked) * one))


def _hollow(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if torch.is_tensor(value) else value

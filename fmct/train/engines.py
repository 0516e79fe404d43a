"""The engine that a configuration names; nothing else knows which runs."""

from typing import cast

import torch
from torch import nn

from fmct.precision import compute_dtype
from fmct.train.engine import Engine, EngineConfig
from fmct.train.optim import OptimConfig
from fmct.train.torch_engine import TorchEngine


def build_engine(task: nn.Module, *, config: EngineConfig, optim: OptimConfig, device: torch.device) -> Engine:
    """Return the engine that the configuration names. Raises ConfigError for ZeRO-3 or a missing DeepSpeed."""
    dtype = compute_dtype(config.precision, device)
    if config.kind == "torch":
        return TorchEngine(task, optim=optim, device=device, dtype=dtype, accumulate=config.accumulate)
    from fmct.train.deepspeed import DeepSpeedEngine

    return cast(Engine, DeepSpeedEngine(task, config=config, optim=optim, device=device, dtype=dtype))

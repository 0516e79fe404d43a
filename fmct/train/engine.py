"""Engines step parameters: the protocol, its configuration, and what both engines share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from fmct import distributed
from fmct.errors import ConfigError
from fmct.train.task import TaskOutput

KINDS = ("deepspeed", "torch")
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class EngineConfig:
    """How parameters are stepped.

    kind: `deepspeed` or `torch`. zero_stage: 0, 1 or 2 (DeepSpeed only). precision: `auto` (bf16 compute where the
    device is fast at it), `bf16` or `fp32`; parameters, gradients and moments stay fp32. accumulate: forward passes per
    update. Accumulating is not the same as a larger batch for balanced targets: Sinkhorn and KoLeo see one pass's
    samples (over all ranks), so 2 × 64 samples balance twice over 64, not once over 128.
    """

    kind: str = "deepspeed"
    zero_stage: int = 1
    precision: str = "auto"
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"engine.kind: expected one of {', '.join(KINDS)}, got {self.kind!r}.")
        if self.accumulate < 1:
            raise ConfigError(f"engine.accumulate: expected at least 1, got {self.accumulate}.")


@dataclass(frozen=True)
class Update:
    """What one optimiser update was, the same on every rank except `samples`, which are this rank's.

    applied is False when a loss or a gradient was not finite: then nothing was changed. stop: a rank asked to stop.
    loss, terms, health: means over ranks and accumulation steps. grad_norm: global, before clipping.
    """

    applied: bool
    stop: bool
    loss: float
    grad_norm: float
    terms: dict[str, float] = field(default_factory=dict)
    health: dict[str, float] = field(default_factory=dict)
    grad_norms: dict[str, float] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)


class Engine(Protocol):
    """What the loop and the checkpoint need of an engine. Every method is called on every rank."""

    task: Any
    device: torch.device
    dtype: torch.dtype
    accumulate: int
    updates: int

    def forward(self, batch: Any, values: Mapping[str, float]) -> TaskOutput:
        """Return the task's output for this rank's batch."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, divided by the accumulation steps."""
        ...

    def step(self, values: Mapping[str, float], *, stop: bool = False) -> Update | None:
        """Return None while gradients accumulate; else update (or skip, all ranks together) and say what happened."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """Return AdamW's moments, whole, as {`exp_avg/NAME` | `exp_avg_sq/NAME`: fp32 CPU tensor}."""
        ...

    def load(self, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], updates: int) -> None:
        """Take parameters (the task's state dict), moments and the number of updates that were applied to them."""
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...


class Tally:
    """Gathers the outputs of one update's forward passes and lets the ranks agree in one small all-reduce."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.scalars: dict[str, list[Tensor | float]] = {}
        self.samples: list[str] = []
        self.alarms: list[str] = []

    def add(self, output: TaskOutput) -> None:
        """Record one forward pass."""
        self.losses.append(output.loss.detach())
        for prefix, values in (("t/", output.terms), ("h/", output.health)):
            for name, value in values.items():
                self.scalars.setdefault(prefix + name, []).append(value)
        self.samples.extend(output.samples)
        self.alarms.extend(alarm for alarm in output.alarms if alarm not in self.alarms)

    def agree(self, *, stop: bool, grad_norm: Tensor | float, device: torch.device) -> Update:
        """Return the update as all ranks see it; `applied` says that every loss and the gradient norm are finite.

        One float64 tensor is summed: {stop, non-finite, gradient norm, loss, terms, health}.
        """
        finite = torch.stack([torch.isfinite(loss).reshape(()) for loss in self.losses]).all()
        rows = [_scalar(stop, device), 1.0 - _scalar(finite, device), _scalar(grad_norm, device)]
        for values in ([*self.losses], *self.scalars.values()):
            rows.append(
                sum((_scalar(value, device) for value in values), torch.zeros((), dtype=torch.float64)) / len(values)
            )
        total = distributed.sum_over_ranks(torch.stack([row.to(device) for row in rows])).tolist()
        ranks = distributed.world_size()
        means = {name: value / ranks for name, value in zip(self.scalars, total[4:], strict=True)}
        norm = total[2] / ranks
        return Update(
            applied=total[1] == 0 and math.isfinite(norm),
            stop=total[0] > 0,
            loss=total[3] / ranks,
            grad_norm=norm,
            terms={name[2:]: value for name, value in means.items() if name.startswith("t/")},
            health={name[2:]: value for name, value in means.items() if name.startswith("h/")},
            samples=list(self.samples),
            alarms=list(self.alarms),
        )


def poisoned(loss: Tensor) -> Tensor:
    """Return the loss, its gradient made NaN when it is not finite, so that every rank's reduced gradient shows it."""
    factor = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
    return loss * factor


def norms_by_module(named: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the global norm of named gradients, and the norm of each top-level module's."""
    members: dict[str, list[Tensor]] = {}
    for name, gradient in named.items():
        members.setdefault(name.split(".")[0], []).append(gradient)
    by_module = {top: get_total_norm(gradients) for top, gradients in members.items()}
    return torch.linalg.vector_norm(torch.stack(list(by_module.values()))), by_module


def _scalar(value: Any, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(device=device, dtype=torch.float64).reshape(())
    return torch.tensor(float(value), dtype=torch.float64, device=device)

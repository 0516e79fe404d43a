"""Engines step parameters. The protocol, what they share, and the plain torch engine; nothing else knows which runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fmct import distributed
from fmct.errors import ConfigError
from fmct.train.optim import OptimConfig, apply_values, build_optimizer
from fmct.train.precision import compute_dtype
from fmct.train.task import TaskOutput

KINDS = ("deepspeed", "torch")
MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET = 1 << 25  # gradient elements per all-reduce of the torch engine


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


class TorchEngine:
    """Plain torch: every rank holds everything; gradients are averaged by all-reduce once per update."""

    def __init__(
        self, task: nn.Module, *, optim: OptimConfig, device: torch.device, dtype: torch.dtype, accumulate: int
    ) -> None:
        self.task: Any = task.to(device)
        self.device = device
        self.accumulate = accumulate
        self.updates = 0
        self._clip = optim.clip
        self.dtype = dtype
        self._optimizer = build_optimizer(self.task.named_parameters(), optim)
        self._trained = {name: p for name, p in self.task.named_parameters() if p.requires_grad}
        self._tally = Tally()
        self._passes = 0
        for parameter in self.task.parameters():
            _from_rank_0(parameter.data)

    def forward(self, batch: Any, values: Mapping[str, float]) -> TaskOutput:
        """Return the task's output under autocast."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            output = self.task(batch, values)
        self._tally.add(output)
        return output

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, divided by the accumulation steps."""
        (poisoned(loss) / self.accumulate).backward()
        self._passes += 1

    def step(self, values: Mapping[str, float], *, stop: bool = False) -> Update | None:
        """Average gradients over ranks, agree, clip and step; None while accumulating."""
        if self._passes < self.accumulate:
            return None
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self._trained.items()}
        _average_over_ranks(list(gradients.values()))
        norm, by_module = norms_by_module(gradients)
        update = self._tally.agree(stop=stop, grad_norm=norm, device=self.device)
        if update.applied:
            for name, parameter in self._trained.items():
                parameter.grad = gradients[name]
            if self._clip > 0:
                clip_grads_with_norm_(self._trained.values(), self._clip, norm)
            apply_values(self._optimizer.param_groups, values)
            self._optimizer.step()
            self.updates += 1
            update.grad_norms.update({name: float(value) for name, value in by_module.items()})
        self._optimizer.zero_grad(set_to_none=True)
        self._tally, self._passes = Tally(), 0
        return update

    def moments(self) -> dict[str, Tensor]:
        """Return AdamW's moments of every trained parameter; zeros before the first update."""
        found = {}
        for name, parameter in self._trained.items():
            state = self._optimizer.state.get(parameter, {})
            for key in MOMENTS:
                found[f"{key}/{name}"] = state.get(key, torch.zeros_like(parameter)).detach().to("cpu", copy=True)
        return found

    def load(self, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], updates: int) -> None:
        """Take parameters, moments and the number of updates."""
        self.task.load_state_dict(dict(parameters))
        for name, parameter in self._trained.items():
            state: dict[str, Tensor] = {"step": torch.tensor(float(updates))}
            for key in MOMENTS:
                state[key] = moments[f"{key}/{name}"].to(self.device, copy=True)
            self._optimizer.state[parameter] = state
        self.updates = updates

    def close(self) -> None:
        """Nothing to release."""


def build_engine(task: nn.Module, *, config: EngineConfig, optim: OptimConfig, device: torch.device) -> Engine:
    """Return the engine that the configuration names. Raises ConfigError for ZeRO-3 or a missing DeepSpeed."""
    dtype = compute_dtype(config.precision, device)
    if config.kind == "torch":
        return TorchEngine(task, optim=optim, device=device, dtype=dtype, accumulate=config.accumulate)
    from fmct.train.deepspeed import DeepSpeedEngine

    return cast(Engine, DeepSpeedEngine(task, config=config, optim=optim, device=device, dtype=dtype))


def _scalar(value: Any, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(device=device, dtype=torch.float64).reshape(())
    return torch.tensor(float(value), dtype=torch.float64, device=device)


def _from_rank_0(tensor: Tensor) -> None:
    if distributed.world_size() > 1:
        torch.distributed.broadcast(tensor, 0)


def _average_over_ranks(gradients: list[Tensor]) -> None:
    """Replace gradients in place by their mean over ranks, in buckets."""
    ranks = distributed.world_size()
    if ranks == 1:
        return
    while gradients:
        count = size = 0
        while count < len(gradients) and (count == 0 or size + gradients[count].numel() <= BUCKET):
            size += gradients[count].numel()
            count += 1
        bucket, gradients = gradients[:count], gradients[count:]
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        torch.distributed.all_reduce(flat)
        flat /= ranks
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))

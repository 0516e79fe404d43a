"""The plain torch engine, behind the same protocol as the DeepSpeed one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from fmct import distributed
from fmct.train.convolutions import autocast
from fmct.train.engine import MOMENTS, Tally, Update, norms_by_module, poisoned
from fmct.train.optim import OptimConfig, apply_values, build_optimizer
from fmct.train.task import TaskOutput

BUCKET = 1 << 25  # gradient elements per all-reduce


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
        with autocast(self.device, self.dtype):
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
            state: dict[str, Tensor] = {"step": torch.tensor(float(updates), device=self.device)}
            for key in MOMENTS:
                state[key] = moments[f"{key}/{name}"].to(self.device, copy=True)
            self._optimizer.state[parameter] = state
        self.updates = updates

    def close(self) -> None:
        """Nothing to release."""


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

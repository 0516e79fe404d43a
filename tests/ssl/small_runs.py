"""Small self-distillation runs: eight synthetic volumes, crops of them as batches, a tiny encoder."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fmct.models.encoder import VisionTransformer
from fmct.ssl.build import (
    HeadConfig,
    SelfDistillationConfig,
    TargetsConfig,
    WeightsConfig,
    build_self_distillation,
)
from fmct.ssl.monitor import HealthConfig
from fmct.ssl.self_distillation import SelfDistillation
from fmct.train.task import TaskOutput

PATCH, GLOBAL, LOCAL = 4, 12, 8
TOKENS = (GLOBAL // PATCH) ** 3
VALUES: dict[str, float] = {"teacher_temperature": 0.05, "momentum": 0.95}
HEAD = HeadConfig(hidden_dim=64, bottleneck_dim=32, num_prototypes=64)
JOINT = WeightsConfig(dino=1.0, ibot=1.0, koleo=0.1, gram=0.5, pixel=1.0)


@dataclass(frozen=True)
class Batch:
    global_views: Tensor
    local_views: Tensor | None
    global_spacing: Tensor
    local_spacing: Tensor | None
    masks: Tensor
    draws: Tensor
    entries: list[str]

    def part(self, samples: slice) -> "Batch":
        """Return the batch of some of the samples, as a rank would hold it."""
        views = ("global_views", "local_views", "global_spacing", "local_spacing", "masks")
        parts = {name: None if getattr(self, name) is None else getattr(self, name)[:, samples] for name in views}
        return replace(self, **parts, draws=self.draws[samples], entries=self.entries[samples])

    def double(self) -> "Batch":
        """Return the batch with fp64 voxels."""
        local = None if self.local_views is None else self.local_views.double()
        return replace(self, global_views=self.global_views.double(), local_views=local)


@functools.cache
def volumes(number: int = 8, side: int = 20) -> Tensor:
    """Return smooth random volumes (number, 2, side, side, side), each with its own texture and brightness."""
    generator = torch.Generator().manual_seed(99)
    coarse = torch.randn(number, 2, 5, 5, 5, generator=generator)
    brightness = torch.linspace(-1, 1, number).view(-1, 1, 1, 1, 1)
    return torch.nn.functional.interpolate(coarse, size=(side, side, side), mode="trilinear") + brightness


def batch_of(step: int, *, samples: int = 8, local: int = 2, masked: int = 9) -> Batch:
    """Return a batch of crops that depends on `step` only; every second masked view has `masked` patches hidden."""
    generator = torch.Generator().manual_seed(step)
    source = volumes(samples)

    def crops(count: int, size: int) -> Tensor:
        starts = torch.randint(0, source.shape[-1] - size + 1, (count, samples, 3), generator=generator).tolist()
        views = [
            torch.stack([source[b, :, z : z + size, y : y + size, x : x + size] for b, (z, y, x) in enumerate(row)])
            for row in starts
        ]
        stacked = torch.stack(views)
        return stacked + 0.05 * torch.randn(stacked.shape, generator=generator)

    masks = torch.zeros(2, samples, TOKENS, dtype=torch.bool)
    for view in range(2):
        for sample in range(view, samples, 2):
            masks[view, sample, torch.randperm(TOKENS, generator=generator)[:masked]] = True
    return Batch(
        global_views=crops(2, GLOBAL),
        local_views=crops(local, LOCAL) if local else None,
        global_spacing=torch.ones(2, samples, 3),
        local_spacing=torch.ones(local, samples, 3) if local else None,
        masks=masks,
        draws=torch.arange(samples) + step * samples,
        entries=[f"volume-{b}" for b in range(samples)],
    )


def tiny_encoder(**settings: Any) -> VisionTransformer:
    """Return an encoder of 32 dimensions and 2 blocks for 2 windows."""
    sizes = {"in_channels": 2, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 2, "layer_scale": None}
    return VisionTransformer(**{**sizes, **settings})


def small_task(*, seed: int = 0, encoder: Mapping[str, Any] | None = None, **settings: Any) -> SelfDistillation:
    """Return a task with small heads; `settings` are keys of SelfDistillationConfig."""
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {
        "weights": WeightsConfig(dino=1.0, ibot=1.0, koleo=0.1),
        "dino_head": HEAD,
        "ibot_head": HEAD,
        "targets": TargetsConfig(),
        "health": HealthConfig(every=5, grace=10_000),
    }
    config = SelfDistillationConfig(**{**defaults, **settings})
    return build_self_distillation(tiny_encoder(**(encoder or {})), config)


def train(
    task: SelfDistillation,
    steps: range,
    *,
    values: Mapping[str, float] = VALUES,
    learning_rate: float = 1e-3,
    optimiser: torch.optim.Optimizer | None = None,
    **batch: Any,
) -> Iterator[TaskOutput]:
    """Yield the output of every step of plain AdamW training."""
    optimiser = optimiser or torch.optim.AdamW(task.parameters(), lr=learning_rate)
    for step in steps:
        output = task(batch_of(step, **batch), values)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        task.after_update(values)
        yield output

"""A small task with a teacher, and batches that are pure functions of the draw, as the real ones are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmct import distributed
from fmct.errors import TrainingStopped
from fmct.train import checkpoint
from fmct.train.engine import Engine, EngineConfig
from fmct.train.engines import build_engine
from fmct.train.log import RunLog
from fmct.train.loop import RunState, fit
from fmct.train.optim import OptimConfig
from fmct.train.schedule import Schedule, ScheduleConfig, constant
from fmct.train.task import TaskOutput

WIDTH = 6
ENGINES = (("torch", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2))
CPU = torch.device("cpu")


@dataclass
class Rows:
    """The draws of one pass on one rank and their values."""

    draws: list[int]
    x: Tensor


class Toy(nn.Module):
    """Regression onto a moving teacher; several parameter groups; a parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch_embed = nn.Linear(WIDTH, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.prototypes = nn.Linear(5, 7, bias=False)
        self.idle = nn.Parameter(torch.ones(3))
        self.beside: dict[str, Any] = {"teacher": {n: p.detach().clone() for n, p in self.named_parameters()}}
        self.updates = 0

    def forward(self, batch: Rows, values: Mapping[str, float]) -> TaskOutput:
        hidden = self.patch_embed(batch.x)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        features = self.head(self.norm(hidden))
        first = (self.prototypes(features) - batch.x.sum(1, keepdim=True)).square().mean()
        second = (features - self.beside["teacher"]["head.bias"]).square().mean()
        loss = first + values.get("weight/second", 0.5) * second
        health = {"spread": features.detach().std(), "updates": float(self.updates)}
        samples = [f"draw-{draw}" for draw in batch.draws]
        return TaskOutput(loss, {"first": first.detach(), "second": second.detach()}, health, samples)

    def after_update(self, values: Mapping[str, float]) -> None:
        self.updates += 1
        own = dict(self.named_parameters())
        for name, average in self.beside["teacher"].items():
            average.lerp_(own[name].detach(), 1 - values["momentum"])

    def run_state(self) -> dict[str, Any]:
        return {"updates": self.updates, "stateless": {}, **self.beside}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"])
        assert state["stateless"] == {}
        for name, value in state["teacher"].items():
            self.beside["teacher"][name].copy_(value)


def row(draw: int) -> Tensor:
    """Return the values of one draw."""
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(1000 + draw))


def batches(start: int, size: int, *, broken: tuple[int, ...] = (), rank: int = 0, ranks: int = 1) -> Iterator[Rows]:
    """Yield a rank's batches of `size` draws from a global draw on; draws in `broken` are not finite."""
    first = start + rank * size
    while True:
        draws = list(range(first, first + size))
        x = torch.stack([row(draw) * (torch.nan if draw in broken else 1.0) for draw in draws])
        yield Rows(draws, x)
        first += size * ranks


def schedule(total: int) -> Schedule:
    """Return a schedule with every kind of value."""
    return Schedule(
        {
            "learning_rate": ScheduleConfig(peak=0.02, start=0.0, end=1e-3, warmup=2, freeze=2),
            "weight_decay": ScheduleConfig(peak=0.04, end=0.4),
            "momentum": ScheduleConfig(peak=0.9, end=1.0),
            "weight/second": constant(0.25),
        },
        total=total,
    )


def engine_of(kind: str, stage: int, *, accumulate: int = 1, clip: float = 1.0) -> Engine:
    """Return an engine around a fresh toy."""
    config = EngineConfig(kind=kind, zero_stage=stage, precision="fp32", accumulate=accumulate)
    optim = OptimConfig(clip=clip, layer_decay=0.9, patch_embed_multiplier=0.2)
    return build_engine(Toy(), config=config, optim=optim, device=CPU)


def train(
    folder: Path,
    kind: str,
    stage: int,
    until: int,
    *,
    size: int = 4,
    accumulate: int = 1,
    total: int = 6,
    **settings: Any,
) -> Engine:
    """Resume a toy run of global batch `size` in `folder` to `until` steps of `total`; return the engine."""
    from fmct.train.run import cut_logs

    engine = engine_of(kind, stage, accumulate=accumulate)
    state = RunState(batch_size=size)
    rank, ranks = distributed.rank(), distributed.world_size()
    folder.mkdir(exist_ok=True, parents=True)
    if (found := checkpoint.newest(folder / "checkpoints")) is not None:
        state.restore(checkpoint.restore(engine, found))
    distributed.barrier()
    if rank == 0:
        cut_logs(folder, state.step)
    log = RunLog(folder, until=total, device=CPU, enabled=rank == 0, terminal=False, interval_s=1e9)
    source = settings.pop("source", None) or batches(
        state.draw, size // ranks // accumulate, rank=rank, ranks=ranks, broken=settings.pop("broken", ())
    )
    settings.setdefault("save_every", 3)
    try:
        fit(
            engine, source, schedule=schedule(total), state=state, until=until, log=log, folder=folder,
            draws_of=lambda rows: rows.draws, **settings,
        )  # fmt: skip
    finally:
        log.close()
    return engine


def fingerprint(engine: Engine) -> dict[str, bytes]:
    """Return every number that a run leaves, as bytes."""
    tensors = {**engine.task.state_dict(), **engine.moments()}
    tensors |= {f"teacher/{name}": value for name, value in engine.task.run_state()["teacher"].items()}
    return {name: (tensor.detach() + 0.0).numpy().tobytes() for name, tensor in tensors.items()}


__all__ = [
    "CPU",
    "ENGINES",
    "Rows",
    "Toy",
    "TrainingStopped",
    "batches",
    "engine_of",
    "fingerprint",
    "schedule",
    "train",
]

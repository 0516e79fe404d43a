"""One configuration, several runs: the same fine-tuning over seeds and over draws of few patients.

`repeat.seeds=[0,1,2]` makes RUN/seed-0, RUN/seed-1 and RUN/seed-2, each the run that `seed=K output=RUN/seed-K` alone
would be. `fmct export RUN MODELS`, `fmct predict MODELS SCANS OUT` and `fmct evaluate OUT LABELS REPORT` then take all
of them; evaluation averages a patient over seeds before anything is counted.
"""

import dataclasses
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from fmct.errors import ConfigError


@dataclass(frozen=True)
class RepeatConfig:
    """seeds: of the run. draws: of the few patients (shots.seed). Every pair is a run; empty ones stay as they are."""

    seeds: list[int] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, values in (("seeds", self.seeds), ("draws", self.draws)):
            if len(set(values)) < len(values) or any(value < 0 for value in values):
                raise ConfigError(f"repeat.{name}: expected different numbers, none negative, such as [0, 1, 2].")


def repeated(config: Any) -> list[Any]:
    """Return the configurations that one stands for: itself where it repeats nothing.

    Raises ConfigError for draws where no few patients are drawn.
    """
    repeat = getattr(config, "repeat", None)
    if repeat is None or not (repeat.seeds or repeat.draws):
        return [config]
    shots = getattr(config, "shots", None)
    if repeat.draws and not getattr(shots, "patients", 0):
        raise ConfigError("repeat.draws: draws of few patients, and this run takes all: add shots.patients=N.")
    return [_part(config, seed, draw) for seed, draw in product(repeat.seeds or [None], repeat.draws or [None])]


def _part(config: Any, seed: int | None, draw: int | None) -> Any:
    names: list[str] = []
    changes: dict[str, Any] = {"repeat": RepeatConfig()}
    if seed is not None:
        names.append(f"seed-{seed}")
        changes["seed"] = seed
    if draw is not None:
        names.append(f"draw-{draw}")
        changes["shots"] = dataclasses.replace(config.shots, seed=draw)
    return dataclasses.replace(config, output=str(Path(config.output) / "-".join(names)), **changes)

"""What does distillation add to small-lesion detection? A grid of SYNTHETIC brains, arms and seeds.

    fmct finetune configs/finetune/microbleed_phantom.yaml output=RUNS minutes=60

The same command again does the cells that are left. Results on phantoms say whether code works, nothing about people.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from fmct import distributed
from fmct.config import MISSING
from fmct.errors import ConfigError
from fmct.experiment.grid import cells_of, read_cells, run_cells
from fmct.experiment.microbleeds import MicrobleedCells, PhantomConfig, phantom_subjects, write_tables
from fmct.lesions.settings import LesionConfig
from fmct.metrics.contrasts import Contrast
from fmct.tasks.lesion_discrimination import DistillationConfig
from fmct.train.session import Options, RunConfig


@dataclass(frozen=True)
class Config:
    """The grid. detector: what every cell shares; its output, seed and distillation are the cell's. minutes: no cell is
    begun after so long, 0 for no bound. contrasts: `first - second` of arms, fixed before running.
    """

    recipe: str = "finetune.microbleed_phantom"
    output: str = MISSING
    phantoms: PhantomConfig = field(default_factory=PhantomConfig)
    detector: LesionConfig = field(default_factory=lambda: LesionConfig(output=""))
    arms: dict[str, DistillationConfig] = field(default_factory=dict)
    contrasts: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    minutes: float = 0.0
    run: RunConfig = field(default_factory=RunConfig)


def main(config: Config, options: Options, device: torch.device) -> int:
    """Run the cells that are left, write the tables, and return the exit code."""
    if distributed.world_size() > 1:
        raise ConfigError("this grid runs on one process: leave out --nproc.")
    output, contrasts = Path(config.output), [Contrast.parse(text) for text in config.contrasts]
    cells = cells_of({arm: [0] for arm in config.arms}, folds=[0], seeds=config.seeds)
    runner = MicrobleedCells(output, config.detector, config.arms, phantom_subjects(config.phantoms), device)
    left = run_cells(cells, output, runner.run, minutes=config.minutes)
    done = read_cells(cells, output)
    title = f"SYNTHETIC brains ({config.phantoms.test} fresh patients): microbleeds stage by stage"
    print(write_tables(output, done, contrasts, left=len(left), title=title) if done else "no cell is done")
    return 0

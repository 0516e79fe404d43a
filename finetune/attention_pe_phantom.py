"""SYNTHETIC: what the attention loss and the recurrent reader add, on fresh phantoms, seed by seed. A grid of runs.

    fmct finetune configs/finetune/attention_pe_phantom.yaml output=RUNS                  the same again goes on
    fmct finetune configs/finetune/attention_pe_phantom.yaml output=RUNS minutes=10       as much as fits

Phantoms are drawn and ingested first; each cell trains one stage of an arm with `attention_pe` and scores the test
phantoms; RUNS/results.md compares the arms in the contrasts listed before. It says nothing about people.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from fmct import distributed
from fmct.config import MISSING
from fmct.errors import ConfigError
from fmct.experiment.attention_pe import AttentionArm, AttentionRuns, PhantomConfig, prepare_phantoms
from fmct.experiment.attention_pe_table import check_contrasts, write_attention_table
from fmct.experiment.grid import cells_of, read_cells, run_cells
from fmct.metrics.contrasts import Contrast
from fmct.train.session import Options, RunConfig


@dataclass(frozen=True)
class Config:
    """The grid. cell: configurations of one run, the later ones over the earlier. arms: by name, slabs arms before the
    series arms that start from them. minutes: no cell is begun after so long, 0 for no bound.
    """

    recipe: str = "finetune.attention_pe_phantom"
    output: str = MISSING
    phantoms: PhantomConfig = field(default_factory=PhantomConfig)
    cell: list[str] = field(default_factory=lambda: ["finetune/attention_pe_phantom_cell"])
    arms: dict[str, AttentionArm] = field(default_factory=dict)
    contrasts: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    minutes: float = 0.0
    run: RunConfig = field(default_factory=RunConfig)


def main(config: Config, options: Options, device: torch.device) -> int:
    """Run the cells that are left, write the table, and return the exit code."""
    del options
    if distributed.world_size() > 1:
        raise ConfigError("this grid runs on one process: leave out --nproc.")
    names = list(config.arms)
    for number, (name, arm) in enumerate(config.arms.items()):
        if arm.start and arm.start not in names[:number]:
            raise ConfigError(f"arms.{name}.start={arm.start}: no slabs arm of this name stands before it.")
    contrasts = [Contrast.parse(text) for text in config.contrasts]
    output = Path(config.output)
    cells = cells_of({name: arm.masks for name, arm in config.arms.items()}, folds=[0], seeds=config.seeds)
    check_contrasts(contrasts, names)
    runs = AttentionRuns(prepare_phantoms(config.phantoms, output), output, config.cell, config.arms, device)
    left = run_cells(cells, output, runs.run, minutes=config.minutes)
    done = read_cells(cells, output)
    print(write_attention_table(output, done, contrasts, left=len(left)) if done else "no cell is done")
    return 0

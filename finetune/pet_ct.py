"""Does a paired scan in training help a scan alone later, and does pretraining pay? A grid of runs on real patients.

    fmct finetune configs/finetune/pet_ct.yaml data=SARCOMA output=RUNS

Thirty patients with a non-contrast CT, the FDG-PET of the same examination and a tumour mask (soft-tissue sarcoma,
IBSI's validation set): the network and losses of nct_pe, pathway A the CT, pathway B the PET, and the CT alone at test.
Five folds of patients; encoders are pretrained without the fold's patients. The same command again does the cells that
are left; `minutes` bounds one call. OUTPUT/results.csv holds every finished cell; `known=[TABLE]` takes those of such a
table as done, so that another machine goes on where one stopped. Research only, not a medical device.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from fmct import distributed
from fmct.config import MISSING
from fmct.errors import ConfigError
from fmct.experiment.cell_table import as_published, write_cells
from fmct.experiment.grid import cells_of, read_cells, run_cells
from fmct.experiment.pet_ct import patients_by_fold, patients_of, prepare_pet_ct
from fmct.experiment.pet_ct_runs import ArmConfig, PetCtRuns, known_cells
from fmct.experiment.table import write_table
from fmct.metrics.contrasts import Contrast
from fmct.store.progress import reporter
from fmct.train.session import Options, RunConfig

RESULTS = "results.csv"


@dataclass(frozen=True)
class Config:
    """The grid. data: folder with STS_NNN. cell: the configuration of one run. pretrain: key=value of the encoders'.

    minutes: no cell is begun after so long, 0 for no bound. known: results.csv of grids that ran elsewhere; a cell that
    was run here too counts as it was here. contrasts: `first - second` of arms, fixed before running.
    """

    recipe: str = "finetune.pet_ct"
    output: str = MISSING
    data: str = MISSING
    cell: str = "finetune/pet_ct_cell"
    pretrain: list[str] = field(default_factory=list)
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    contrasts: list[str] = field(default_factory=list)
    folds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    minutes: float = 0.0
    known: list[str] = field(default_factory=list)
    run: RunConfig = field(default_factory=RunConfig)


def main(config: Config, options: Options, device: torch.device) -> int:
    """Run the cells that are left, write the table, and return the exit code."""
    if distributed.world_size() > 1:
        raise ConfigError("this grid runs on one process: leave out --nproc. Cells of other folds may run elsewhere.")
    output, contrasts = Path(config.output), [Contrast.parse(text) for text in config.contrasts]
    patients = patients_of(Path(config.data))
    known = known_cells(config.known, patients=patients, arms=config.arms, cell=config.cell)  # before anything is done
    data = prepare_pet_ct(Path(config.data), output, progress=reporter(10.0))
    cells = cells_of({a: arm.sizes for a, arm in config.arms.items()}, folds=config.folds, seeds=config.seeds)
    runs = PetCtRuns(data, output, config.cell, config.arms, config.pretrain, device)
    left = run_cells(cells, output, runs.run, minutes=config.minutes, known=known)
    controls = {"inscribed ellipsoid (control)": runs.control(config.folds)} if len(left) < len(cells) else {}
    done = [as_published(results) for results in read_cells(cells, output, known=known)]
    if done:
        write_cells(output / RESULTS, done, patients_by_fold(patients))
    title = "Soft-tissue sarcoma: Dice of the tumour on CT alone, thirty patients, five folds"
    print(write_table(output, done, controls, contrasts, left=len(left), title=title) if done else "no cell is done")
    return 0

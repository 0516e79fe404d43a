"""The runs of the PET/CT grid: one cell trained and scored, and what position alone is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fmct.config import build, find_config, import_recipe, read_tree
from fmct.downstream.run import step_flops
from fmct.errors import DataError
from fmct.experiment.cell_table import read_cells_of_tables
from fmct.experiment.grid import Cell
from fmct.experiment.pet_ct import PetCt, patients_by_fold, pseudonyms, training_patients, write_fold
from fmct.experiment.pretraining import encoder_without, preprocessing_here
from fmct.experiment.scoring import PAIRED, SCORES, control_dice, score_run, trained_network
from fmct.store.reader import Store
from fmct.train.log import training_seconds
from fmct.train.session import Options

RECIPE = "finetune.nct_pe"


@dataclass(frozen=True)
class ArmConfig:
    """One way to train. set: key=value on top of `cell`. sizes: training patients, 0 for all of a fold's.

    pretraining: whose scans the encoder saw: `fold` (none of the fold's test patients) or `all` (transductive: every
    CT, no label). paired: score the second pathway too, given the paired scan.
    """

    set: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [0])
    pretraining: str = "fold"
    paired: bool = False


@dataclass(frozen=True)
class PetCtRuns:
    """Trains and scores cells below `output`. cell: configuration of a run; arms: changes of it, by name."""

    data: PetCt
    output: Path
    cell: str
    arms: Mapping[str, ArmConfig]
    pretrain: Sequence[str]
    device: torch.device

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return a cell's scores {score: {patient: Dice}} and cost, trained now."""
        arm = self.arms[cell.arm]
        allowed = ["allow_overlap=true"] if arm.pretraining == "all" else []
        settings = self._settings(cell, encoder=self._encoder(cell, arm), words=[*allowed, *arm.set])
        run = Path(settings.output)
        import_recipe(RECIPE).main(settings, Options(), self.device)
        record, network = trained_network(run)
        paired = float(settings.objective.weights.reads_ctpa)  # every patient of this set has a pair
        scores = score_run(run, settings.data, settings.windows, paired=arm.paired)
        drawn = training_patients(self.data.patients, cell.fold, count=cell.size, seed=cell.seed)
        return {
            "scores": {score: self._named(values) for score, values in scores.items()},
            "seconds": training_seconds(run),
            "updates": settings.steps,
            "windows": settings.steps * settings.batch_size,
            "gflop_per_window": step_flops(settings, network, record, paired=paired) / 1e9,
            "training_patients": len(drawn),
        }

    def control(self, folds: Sequence[int]) -> dict[str, float]:
        """Return {patient: Dice} of the inscribed ellipsoid on every fold's windows: what position alone is worth."""
        found: dict[str, float] = {}
        preprocessing = preprocessing_here(self.pretrain)  # no encoder is needed for it, and none is trained
        for fold in folds:
            settings = self._settings(Cell("control", 0, fold, 0), encoder=None)
            dice = control_dice(settings.data, self.data.ellipsoids, preprocessing, settings.windows)
            found |= self._named(dice)
        return found

    def _settings(self, cell: Cell, *, encoder: Path | None, words: Sequence[str] = ()) -> Any:
        """Return the configuration of a cell's run on an encoder, with its table of splits written."""
        splits = self.output / "folds" / f"fold{cell.fold}-n{cell.size}-seed{cell.seed}.csv"
        splits.parent.mkdir(parents=True, exist_ok=True)
        write_fold(splits, self.data.patients, cell.fold, count=cell.size, seed=cell.seed)
        own = [
            f"data.store={self.data.store}",
            f"data.masks={self.data.masks}",
            f"data.pairs={self.data.pairs}",
            f"data.splits={splits}",
            f"encoder={encoder or ''}",
            f"seed={cell.seed}",
            f"output={self.output / 'runs' / cell.name}",
        ]
        tree = read_tree([str(find_config(self.cell))], [*own, *words])
        return build(import_recipe(RECIPE).Config, tree)

    def _encoder(self, cell: Cell, arm: ArmConfig) -> Path:
        held_out = [] if arm.pretraining == "all" else patients_by_fold(self.data.patients)[cell.fold]
        return encoder_without(held_out, self.output / "encoders", overrides=self.pretrain, fold=cell.fold)

    def _named(self, values: Mapping[str, float]) -> dict[str, float]:
        with Store.open(self.data.store) as store:
            names = pseudonyms(store, self.data.patients)
        return {names[patient]: value for patient, value in values.items()}


def known_cells(
    tables: Sequence[str], *, patients: Sequence[str], arms: Mapping[str, ArmConfig], cell: str
) -> dict[Cell, dict[str, Any]]:
    """Return the cells of tables that grids like this one wrote (fmct.experiment.cell_table).

    Raises DataError for a table that does not fit the arms and patients, or whose cells had another budget than the
    configuration `cell` gives them.
    """
    scores = {name: [*SCORES, *([PAIRED] if arm.paired else [])] for name, arm in arms.items()}
    found = read_cells_of_tables(tables, scores=scores, tested=patients_by_fold(patients))
    for key, results in found.items():
        tree = read_tree([str(find_config(cell))], arms[key.arm].set)
        budget = tree["steps"], tree["steps"] * tree["batch_size"]
        if (results["updates"], results["windows"]) != budget:
            raise DataError(
                f"known: {key.name} had {results['updates']} updates and {results['windows']} windows; here "
                f"they are {budget[0]} and {budget[1]}. Their scores are not comparable: leave the table out."
            )
    return found

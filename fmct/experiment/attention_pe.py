"""SYNTHETIC: what the attention loss and the recurrent reader add, on angiograms drawn from formulas.

Every cell trains one stage of an arm with one seed and scores the fresh test phantoms: each patient's logit, and of
stage one whether the peak of its attention lies at an embolus.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from fmct.config import build, find_config, import_recipe, read_tree
from fmct.data.cohort import Cohort, CohortConfig, read_cohort
from fmct.data.mask_bank import MASK_SCALE
from fmct.data.series import scan_of_entry
from fmct.errors import ConfigError
from fmct.experiment.grid import Cell
from fmct.inference.native_grid import to_scan
from fmct.inference.slab_series import attention_volume, read_series, slab_series
from fmct.models.slab_series import SlabSeriesNetwork
from fmct.phantoms.angiograms import AngiogramCohort, write_angiograms
from fmct.publish.load_model import PublishedModel
from fmct.publish.task_record import read_task
from fmct.publish.weights import read_weights
from fmct.store.ingest import IngestConfig, ingest
from fmct.tasks import attention_pe
from fmct.train import checkpoint
from fmct.train.session import Options

RECIPE, TEST = "finetune.attention_pe", "test"
HIT_MM = 20.0  # how near to an embolus the peak is at it: half the diagonal of a cell of 16 voxels of 1.8 mm


@dataclass(frozen=True)
class PhantomConfig:
    """The phantoms. counts: of train, validation and test; shape: voxels; workers: processes that draw."""

    counts: list[int] = field(default_factory=lambda: [120, 4, 120])
    seed: int = 0
    shape: list[int] = field(default_factory=lambda: [40, 96, 96])
    spacing_mm: list[float] = field(default_factory=lambda: [2.5, 1.8, 1.8])
    workers: int = 2


@dataclass(frozen=True)
class AttentionArm:
    """One way to train. set: key=value on top of `cell`. start: the arm whose slabs run a series arm reads, "" for a
    slabs arm. masks: budgets of masks, 0 for all.
    """

    set: list[str] = field(default_factory=list)
    start: str = ""
    masks: list[int] = field(default_factory=lambda: [0])


@dataclass(frozen=True)
class Phantoms:
    """Where the prepared phantoms lie."""

    files: AngiogramCohort
    store: Path


def prepare_phantoms(config: PhantomConfig, folder: Path) -> Phantoms:
    """Draw and ingest the phantoms of a configuration below `folder`, and return them; what is there is kept."""
    place = folder / "phantoms"
    if not (place / "README.md").is_file():  # the last file to be written
        if place.exists():
            raise ConfigError(f"{place}: was left half drawn. Remove it and run the same command again.")
        write_angiograms(
            place, counts=config.counts, seed=config.seed, shape=(config.shape[0], config.shape[1], config.shape[2]),
            spacing_mm=config.spacing_mm, workers=config.workers,
        )  # fmt: skip
    files = AngiogramCohort.at(place)
    ingest([str(files.scans)], folder / "store", config=IngestConfig(workers=1, patients=str(files.patients)))
    return Phantoms(files, folder / "store")


@dataclass(frozen=True)
class AttentionRuns:
    """Trains and scores cells below `output`. cell: configurations of a run, laid over each other; arms by name."""

    phantoms: Phantoms
    output: Path
    cell: Sequence[str]
    arms: Mapping[str, AttentionArm]
    device: torch.device

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return a cell's scores {score: {patient: value}} and cost, trained now."""
        settings = self._settings(cell)
        started = time.perf_counter()
        import_recipe(RECIPE).main(settings, Options(), self.device)
        seconds = time.perf_counter() - started
        references = str(self.phantoms.files.references)
        cohort = read_cohort(CohortConfig(**{**vars(settings.data), "masks": references}))
        scores = score_series(newest_model(Path(settings.output), self.device), cohort)
        return {"scores": scores, "seconds": seconds, "updates": settings.steps}

    def _settings(self, cell: Cell) -> Any:
        arm, files = self.arms[cell.arm], self.phantoms.files
        words = [
            f"data.store={self.phantoms.store}", f"data.labels={files.labels}", f"data.masks={files.masks}",
            f"data.splits={files.splits}", f"seed={cell.seed}", f"output={self._folder(cell)}",
        ]  # fmt: skip
        if arm.start:
            first = Cell(arm.start, cell.size, cell.fold, cell.seed)
            words += ["stage=series", f"slabs_run={self._folder(first)}", f"features={self.output / 'features'}"]
        else:
            words += [f"budget.masks={cell.size}"]
        tree = read_tree([str(find_config(name)) for name in self.cell], [*words, *arm.set])
        return build(import_recipe(RECIPE).Config, tree)

    def _folder(self, cell: Cell) -> Path:
        return self.output / "runs" / cell.name


def newest_model(run: Path, device: torch.device) -> PublishedModel:
    """Return the network of a run's newest checkpoint as it would be exported."""
    record = read_task(run)
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None, f"{run}: a finished run has a checkpoint"
    module, architecture = attention_pe.trained_predictor(
        record.architecture,
        read_weights(found / checkpoint.PARAMETERS),
        in_channels=record.in_channels,
        spacing_mm=record.spacing_mm,
    )
    return PublishedModel(module.to(device), record.with_architecture(architecture))


def score_series(model: PublishedModel, cohort: Cohort) -> dict[str, dict[str, float]]:
    """Return {score: {patient: value}} of the test series, whose masks are whole.

    logit: of every patient, label: 0 or 1; hit: of stage one's positives, 1 where attention peaks within HIT_MM.
    """
    found: dict[str, dict[str, float]] = {"logit": {}, "label": {}, "hit": {}}
    for sample in cohort.of(TEST):
        scan = scan_of_entry(model.preprocessing, cohort.store, sample.entry)
        found["logit"][sample.patient] = float(read_series(model, scan, precision="fp32").logits[0])
        found["label"][sample.patient] = sample.labels[0]
        if sample.mask is None or isinstance(model.module, SlabSeriesNetwork):
            continue
        slabs = slab_series(model.module, model.preprocessing, scan, device=model.device, precision="fp32")
        seen = attention_volume(slabs)
        attention = to_scan(seen.attention[None], seen.grid, scan.shape)[0]
        share = cohort.masks.read(sample.entry, sample.mask, 0, (0, 0, 0), sample.entry.shape) / MASK_SCALE
        found["hit"][sample.patient] = float(peak_distance(attention, share >= 0.5, sample.entry.spacing_mm) <= HIT_MM)
    return {name: values for name, values in found.items() if values}


def peak_distance(attention: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Return the distance in mm from the attention's peak to the nearest voxel of a mask; inf for an empty one."""
    if not mask.any():
        return float("inf")
    away = np.asarray(ndimage.distance_transform_edt(~mask, sampling=tuple(spacing_mm)))
    return float(away[np.unravel_index(int(attention.argmax()), attention.shape)])

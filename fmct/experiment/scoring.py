"""A finished run's scores on its fold's test patients: windows predicted alone, and whole crops beside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmct.data.cohort import Cohort, CohortConfig, read_cohort
from fmct.data.labelled import LabelledBatch, windows_of
from fmct.data.mask_bank import MASK_SCALE
from fmct.data.window_config import WindowsConfig
from fmct.experiment.window_dice import INSIDE, Mask, PooledDice, above_half, window_dice
from fmct.inference.embed import scan_of_entry
from fmct.inference.native_grid import to_scan
from fmct.inference.sliding_window import predict_series
from fmct.models.dual_phase import DualPhase
from fmct.preprocess import Preprocessing
from fmct.publish.load_model import PublishedModel
from fmct.publish.task_record import TaskRecord, read_task
from fmct.publish.weights import read_weights
from fmct.tasks import nct_pe
from fmct.tasks.backbone import load_trained
from fmct.train import checkpoint

WINDOWS = 20  # of each test patient
WINDOW_SEED = 1
BATCH = 10
TEST = "test"
SCORES, PAIRED = ("windows", "whole"), "paired"


def score_run(run: Path, data: CohortConfig, windows: WindowsConfig, *, paired: bool) -> dict[str, dict[str, float]]:
    """Return {score: {patient: Dice}} of the newest checkpoint's networks: `windows`, `whole`, and `paired`.

    windows: the first pathway on WINDOWS windows a patient, pooled; whole: on whole crops, sliding. paired: with
    `paired`, the second pathway on the same windows, given the paired scan: a reference, which is no upper bound.
    """
    record, network = trained_network(run)
    cohort = read_cohort(data)
    alone = network.export_nct().eval()
    masks: dict[str, Mask] = {"windows": lambda batch: above_half(alone(batch.volumes, **_at(batch)).nct.segmentation)}
    if paired:
        masks[PAIRED] = lambda batch: above_half(_second_pathway(network, batch))
    with torch.no_grad():
        found = window_dice(_windows(cohort, record.preprocessing, windows), masks)
        named = {score: _by_patient(values, cohort) for score, values in found.items()}
        return {**named, "whole": whole_dice(run, record, cohort)}


def trained_network(run: Path) -> tuple[TaskRecord, DualPhase]:
    """Return what a run of kind nct_pe says of its network, and the network with its newest weights."""
    record = read_task(run)
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None, f"{run}: a finished run has a checkpoint"
    network = nct_pe.build_network(record.architecture, in_channels=record.in_channels, spacing_mm=record.spacing_mm)
    load_trained(network, record.architecture, read_weights(found / checkpoint.PARAMETERS))
    return record, network.eval()


def whole_dice(run: Path, record: TaskRecord, cohort: Cohort) -> dict[str, float]:
    """Return {patient: Dice} of whole test series, predicted as `fmct predict` does, at probability ½."""
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None, f"{run}: a finished run has a checkpoint"
    module, architecture = nct_pe.trained_predictor(
        record.architecture,
        read_weights(found / checkpoint.PARAMETERS),
        in_channels=record.in_channels,
        spacing_mm=record.spacing_mm,
    )
    model = PublishedModel(module, record.with_architecture(architecture))
    pooled = PooledDice()
    for sample in cohort.of(TEST):
        scan = scan_of_entry(model.preprocessing, cohort.store, sample.entry)
        output = predict_series(model, scan)
        assert output.probability is not None
        predicted = torch.from_numpy(to_scan(output.probability, output.grid, scan.shape) >= INSIDE)
        pooled.add([sample.patient], predicted, torch.from_numpy(_truth(cohort, sample)[None]))
    return pooled.scores


def control_dice(
    data: CohortConfig, control: Path, preprocessing: Preprocessing, windows: WindowsConfig
) -> dict[str, float]:
    """Return {patient: Dice} of the masks in `control` on the windows that `score_run` takes: no voxel is looked at."""
    cohort = read_cohort(data)
    other = read_cohort(CohortConfig(**{**vars(data), "masks": str(control), "pairs": ""}))
    drawn = iter(_windows(other, preprocessing, windows))
    values = window_dice(_windows(cohort, preprocessing, windows), {"control": lambda _: next(drawn).mask >= INSIDE})
    return _by_patient(values["control"], cohort)


def _windows(cohort: Cohort, preprocessing: Preprocessing, windows: WindowsConfig) -> Any:
    uniform = WindowsConfig(**{**vars(windows), "body_fraction": 0.0})  # empty windows included
    return windows_of(cohort, TEST, preprocessing, uniform, count=WINDOWS, seed=WINDOW_SEED, batch_size=BATCH)


def _second_pathway(network: DualPhase, batch: LabelledBatch) -> torch.Tensor:
    output = network(batch.volumes, batch.paired, spacing=batch.spacing, has_pair=batch.has_pair)
    assert output.ctpa is not None
    logits = output.nct.segmentation.new_full(output.nct.segmentation.shape, -torch.inf)
    logits[output.pair_rows] = output.ctpa.segmentation
    return logits


def _at(batch: LabelledBatch) -> Mapping[str, torch.Tensor]:
    return {"spacing": batch.spacing}


def _by_patient(values: Mapping[str, float], cohort: Cohort) -> dict[str, float]:
    patients = cohort.patients(TEST)
    return {patients[int(number)]: value for number, value in values.items()}


def _truth(cohort: Cohort, sample: Any) -> np.ndarray:
    share = cohort.masks.read(sample.entry, sample.mask, 0, (0, 0, 0), sample.entry.shape) / MASK_SCALE
    return np.asarray(share >= INSIDE)

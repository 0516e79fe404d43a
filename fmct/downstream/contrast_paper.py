"""A run of the published contrast system: its task and its plan."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from fmct import distributed
from fmct.contrast.paper_preprocessing import WINDOW_HU
from fmct.contrast.paper_reader import SLICES_AT_ONCE
from fmct.data.slice_batches import SliceBatch, SliceScans, slice_batches
from fmct.downstream.contrast_paper_config import ContrastPaperTraining
from fmct.downstream.contrast_paper_inputs import Inputs
from fmct.downstream.contrast_paper_start import begin_optimizer, load_start
from fmct.downstream.run import cohort_fingerprint, describe_run
from fmct.models.slice_networks import SliceNetwork, build_slice_network
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish.task_record import TaskRecord
from fmct.series_steps import SeriesSteps
from fmct.table_files import write_rows
from fmct.tasks.contrast_paper import ContrastPaper, describe_network
from fmct.train.schedule import Schedule
from fmct.train.session import Plan, per_rank
from fmct.windows import Window

LEFT_OUT = "left_out.csv"


def build_task(config: ContrastPaperTraining, inputs: Inputs, device: torch.device) -> ContrastPaper:
    """Return the task: a network from its seed, and validation over every slice of the validation split."""
    network = build_slice_network(
        inputs.network, side=inputs.settings.profile.side, seed=config.seed, pretrained=not config.start
    )
    if config.freeze:
        network.freeze(config.freeze)
    return ContrastPaper(
        network,
        torch.from_numpy(inputs.template.voxels),
        validate=validation_loss(inputs.scans[config.splits[1]], device),
        epoch=epoch_length(inputs.scans[config.splits[0]], config.batch_size),
        patience=config.patience,
        keep="last" if config.legacy.last_epoch else "best",
    )


def epoch_length(scans: SliceScans, batch_size: int) -> int:
    """Return the updates that show about every slice once."""
    return max(1, round(len(scans.places) / batch_size))


def validation_loss(scans: SliceScans, device: torch.device) -> Callable[[SliceNetwork], float]:
    """Return what gives a network's mean cross-entropy over all slices of a split, each rank taking its share."""

    def validate(network: SliceNetwork) -> float:
        """Return the loss, in float64; the same on every rank."""
        places = scans.places[distributed.rank() :: distributed.world_size()]
        total = torch.zeros(2, dtype=torch.float64, device=device)
        with torch.no_grad():
            for first in range(0, len(places), SLICES_AT_ONCE):
                part = places[first : first + SLICES_AT_ONCE]
                labels = torch.tensor(scans.labels[part[:, 0]], dtype=torch.float64, device=device)
                logits = network(scans.taken(part).to(device)).double()
                total[0] += functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
                total[1] += len(part)
        total = distributed.sum_over_ranks(total)
        return float(total[0] / total[1])

    return validate


def plan_of(config: ContrastPaperTraining, inputs: Inputs, task: ContrastPaper, device: torch.device) -> Plan:
    """Return the run as the session trains it."""
    scans = inputs.scans[config.splits[0]]
    steps = config.epochs * epoch_length(scans, config.batch_size)
    batch = per_rank(config.batch_size, config.engine.accumulate)
    fingerprint = hashlib.sha256(f"{cohort_fingerprint(inputs.cohort)} {inputs.prepared.fingerprint}".encode())

    def batches_from(draw: int) -> Iterator[SliceBatch]:
        """Yield this rank's batches from a draw on."""
        return slice_batches(
            scans, seed=config.seed, batch_size=batch, variation=config.variation, rank=distributed.rank(),
            world_size=distributed.world_size(), start_draw=draw, device=device,
        )  # fmt: skip

    return Plan(
        config=config, output=config.output, task=task, batches_from=batches_from, steps=steps,
        batch_size=config.batch_size, engine=config.engine, optim=config.optim, run=config.run,
        schedule=Schedule({"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}, total=steps),
        corpus={config.data.store: fingerprint.hexdigest()},
        warm_start=partial(load_start, config.start, task, inputs.network) if config.start else None,
        begin=partial(begin_optimizer, config.start) if config.start_optimizer else None,
        describe=partial(_describe, record=record_of(config, inputs), inputs=inputs),
        draws_of=lambda batch: batch.draws.tolist(), finished=lambda: task.finished,
    )  # fmt: skip


def record_of(config: ContrastPaperTraining, inputs: Inputs) -> TaskRecord:
    """Return what RUN/task.json says. The slices themselves are made by fmct.contrast.paper_reader, not by tiles."""
    side = inputs.settings.profile.side
    architecture = describe_network(inputs.network, side=side, aggregate=config.aggregate, **inputs.architecture)
    window = Window(*WINDOW_HU, name=f"registered to {inputs.template.name}, profile {inputs.settings.profile.name}")
    spec = InputSpec(mode="resize", size_voxels=(1, side, side), spacing_mm=None, steps=SeriesSteps())
    return TaskRecord(
        kind="contrast_paper",
        targets=inputs.cohort.targets,
        architecture=architecture,
        preprocessing=Preprocessing(windows=(window,), input=spec),
        in_channels=1,
        spacing_mm=inputs.settings.spacing,
        pool="mean",
        pretrained={"overlap": inputs.notes} if inputs.notes else {},
    )


def _describe(folder: Path, *, record: TaskRecord, inputs: Inputs) -> None:
    """Write what export needs, and which series were left out and why."""
    describe_run(folder, record, inputs.cohort)
    rows = [
        {"patient": s.patient, "series": s.entry.id, "split": s.split, "code": why.code, "reason": why.reason}
        for s, why in inputs.refused
    ]
    write_rows(folder / LEFT_OUT, ("patient", "series", "split", "code", "reason"), rows)

"""A run of the published contrast system: its configuration, its scans prepared and cached, its task and its plan."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fmct import distributed
from fmct.config import MISSING
from fmct.contrast.paper_cache import PreparedScans
from fmct.contrast.paper_preprocessing import WINDOW_HU
from fmct.contrast.paper_reader import SLICES_AT_ONCE
from fmct.contrast.paper_registration import Template, check_template, read_template
from fmct.contrast.paper_settings import LEGACY_INPUT_SCALE, LegacySwitches, PaperInput, Preparation, preparation
from fmct.data.cohort import Cohort, CohortConfig, read_cohort
from fmct.data.sample import Sample
from fmct.data.slice_batches import SliceBatch, SliceScans, SliceVariation, slice_batches
from fmct.downstream.contrast_paper_start import begin_optimizer, load_start, overlap_notes
from fmct.downstream.run import cohort_fingerprint, describe_run
from fmct.errors import ConfigError, DataError, Refusal
from fmct.metrics.operating_point import RULES
from fmct.models.slice_networks import SliceNetwork, SliceNetworkConfig, build_slice_network
from fmct.preprocess import InputSpec, Preprocessing
from fmct.probes.during_training import wait_for
from fmct.publish.task_record import TaskRecord
from fmct.series_steps import SeriesSteps
from fmct.table_files import write_rows
from fmct.tasks.contrast_paper import AGGREGATES, ContrastPaper, describe_network
from fmct.train.engine import EngineConfig
from fmct.train.optim import OptimConfig
from fmct.train.schedule import Schedule, ScheduleConfig, constant
from fmct.train.session import Plan, RunConfig, per_rank
from fmct.windows import Window

log = logging.getLogger(__name__)
LEFT_OUT = "left_out.csv"
PREPARING_LIMIT_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class ThresholdConfig:
    """What makes a scan positive: a probability strictly above `value` (rule fixed, as published), or from validation.

    rule: fixed, or one of fmct.metrics.operating_point.choose over validation patients, with `level`.
    """

    rule: str = "fixed"
    value: float = 0.5
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.rule not in ("fixed", *RULES) or not 0 < self.value < 1:
            raise ConfigError(
                f"threshold: rule is fixed or one of {', '.join(RULES)}, value lies between 0 and 1; got "
                f"{self.rule!r} and {self.value}."
            )


@dataclass(frozen=True)
class ContrastPaperTraining:
    """The run. input: template, profile and registration; legacy: which published defects are brought back.

    start: a run or model folder of this recipe whose network is trained on (head-neck → chest); start_optimizer: with
    that run's Adam moments, as published; freeze: so many of its first layers stay. epochs: at most; patience: so many
    without a lower validation loss end it, 0 never. variation: null for none. aggregate: mean or fraction (of slices
    with at least ½). published: headneck or chest, for the table. cache: folder of prepared scans, OUTPUT.cache when
    empty, shared by runs; workers: processes that prepare, 0 for one a core. splits: train, validation, test.
    """

    recipe: str = MISSING
    output: str = MISSING
    data: CohortConfig = field(default_factory=CohortConfig)
    input: PaperInput = field(default_factory=PaperInput)
    legacy: LegacySwitches = field(default_factory=LegacySwitches)
    network: SliceNetworkConfig = field(default_factory=SliceNetworkConfig)
    start: str = ""
    start_optimizer: bool = False
    freeze: int = 0
    variation: SliceVariation | None = field(default_factory=SliceVariation)
    aggregate: str = "mean"
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    seed: int = 0
    epochs: int = 500
    patience: int = 20
    batch_size: int = 32
    cache: str = ""
    workers: int = 1
    splits: list[str] = field(default_factory=lambda: ["train", "validation", "test"])
    published: str = ""
    learning_rate: ScheduleConfig = field(default_factory=lambda: constant(1e-5))
    weight_decay: ScheduleConfig = field(default_factory=lambda: constant(0.0))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(clip=0.0, eps=1e-7, last_layer=""))
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(kind="torch"))
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class Inputs:
    """What a run learns from. scans: by split, those that could be prepared. refused: (sample, why) of the others.

    network: as it is built, the legacy input scale in it.
    """

    cohort: Cohort
    template: Template
    settings: Preparation
    prepared: PreparedScans
    scans: dict[str, SliceScans]
    refused: list[tuple[Sample, Refusal]]
    network: SliceNetworkConfig
    notes: list[str]

    @property
    def architecture(self) -> dict[str, Any]:
        """What template and settings are, for task.json."""
        template = self.template
        facts = {
            "name": template.name,
            "sha256": template.sha256,
            "shape": list(template.voxels.shape),
            "affine": template.affine.tolist(),
        }
        return {"preparation": self.settings.to_dict(), "template": facts}


def read_inputs(config: ContrastPaperTraining) -> Inputs:
    """Return a run's scans, prepared and cached. Everything a user can get wrong is refused before that begins.

    Raises ConfigError and DataError, among them a split whose scans are of one class, or all refused.
    """
    _check(config)
    network = legacy_network(config.network, config.legacy)
    template = read_template(config.input.template, config.input.spacing, sha256=config.input.template_sha256)
    settings = preparation(config.input, config.legacy)
    check_template(template, settings.profile)
    cohort = read_cohort(config.data)
    notes = overlap_notes(config.start, cohort, config.data.on_overlap, config.splits[2]) if config.start else []
    if config.legacy.active:
        notes.append(f"LEGACY: published defects are switched on: {', '.join(config.legacy.active)}.")
    prepared = PreparedScans(config.cache or f"{config.output}.cache", template, settings)
    samples = [s for s in cohort.samples if s.split in config.splits and not math.isnan(s.labels[0])]
    cohort = replace(cohort, samples=tuple(samples))
    _prepare(prepared, cohort, config.workers)
    scans, refused = {}, []
    for split in config.splits:
        scans[split], out = _scans_of(cohort, split, prepared)
        refused += out
    for split in config.splits[:2]:
        scans[split].check_classes(split)
    for sample, why in refused:
        log.warning("series %s of %s is left out: %s", sample.entry.id, sample.split, why)
    kept = {name.split("/")[1] for part in scans.values() for name in part.ids}
    cohort = replace(cohort, samples=tuple(s for s in cohort.samples if s.entry.id in kept))
    return Inputs(cohort, template, settings, prepared, scans, refused, network, notes)


def legacy_network(network: SliceNetworkConfig, legacy: LegacySwitches) -> SliceNetworkConfig:
    """Return the network's configuration with the published input scale where that switch is on."""
    if not legacy.input_scale:
        return network
    if network.name != "efficientnet_b4" or network.input_scale != 1.0:
        raise ConfigError(
            "legacy.input_scale: only Keras' EfficientNet divides its input by 255 once more; it goes with "
            f"network.name=efficientnet_b4 and no network.input_scale of its own. Got {network.name} and "
            f"{network.input_scale:g}."
        )
    return replace(network, input_scale=LEGACY_INPUT_SCALE)


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


def _check(config: ContrastPaperTraining) -> None:
    if len(config.data.targets) != 1 or not config.data.labels or config.data.masks:
        raise ConfigError(
            f"data.targets: this recipe learns one label of a table, such as data.targets=[contrast] with data.labels; "
            f"got {config.data.targets}."
        )
    if config.aggregate not in AGGREGATES or len(config.splits) != 3 or config.epochs < 1:
        raise ConfigError(
            f"aggregate is one of {', '.join(AGGREGATES)}, splits are three names, epochs at least 1; got "
            f"{config.aggregate!r}, {', '.join(config.splits)} and {config.epochs}."
        )
    if (config.start_optimizer or config.freeze) and not config.start:
        raise ConfigError("start_optimizer and freeze go with start=RUN, the run whose network is trained on.")


def _prepare(prepared: PreparedScans, cohort: Cohort, workers: int) -> None:
    """Prepare every scan on rank 0; the other ranks wait without a collective."""
    entries = [sample.entry for sample in cohort.samples]
    names = hashlib.sha256(" ".join(sorted(entry.content_hash for entry in entries)).encode()).hexdigest()[:16]
    done = prepared.folder / f"ready-{names}"
    if distributed.rank() == 0:
        log.info("preparing %d scans in %s", len(entries), prepared.folder)
        prepared.make(cohort.store, entries, workers=workers)
        done.touch()
    wait_for(done, PREPARING_LIMIT_S)


def _scans_of(cohort: Cohort, split: str, prepared: PreparedScans) -> tuple[SliceScans, list[tuple[Sample, Refusal]]]:
    """Return the prepared scans of a split with their labels, joined by id, and those that were refused."""
    samples = {sample.entry.id: sample for sample in cohort.of(split)}
    arrays, inside, labels, ids, refused = [], [], [], [], []
    for entry, found in prepared.all([sample.entry for sample in samples.values()]):
        sample = samples[entry.id]
        if isinstance(found, Refusal):
            refused.append((sample, found))
            continue
        arrays.append(found.slices)
        inside.append(found.inside)
        labels.append(sample.labels[0])
        ids.append(f"{sample.patient}/{entry.id}")
    if not arrays:
        codes = ", ".join(sorted({why.code for _, why in refused}))
        raise DataError(f"split {split}: all of its {len(refused)} scans are refused ({codes}); see the log for each.")
    return SliceScans(arrays, inside, np.array(labels), ids), refused


def _describe(folder: Path, *, record: TaskRecord, inputs: Inputs) -> None:
    """Write what export needs, and which series were left out and why."""
    describe_run(folder, record, inputs.cohort)
    rows = [
        {"patient": s.patient, "series": s.entry.id, "split": s.split, "code": why.code, "reason": why.reason}
        for s, why in inputs.refused
    ]
    write_rows(folder / LEFT_OUT, ("patient", "series", "split", "code", "reason"), rows)


def thresholds_of(scores: Sequence[float]) -> float:
    """Return the smallest number above every one of `scores`: a score that reaches it is strictly above them."""
    return math.nextafter(max(scores), math.inf)

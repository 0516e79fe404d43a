"""From a task and its cohort to the last update and the frozen operating point: what every fine-tuning recipe does."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fmct import distributed
from fmct.artefacts import sha256_of
from fmct.data.cohort import Cohort, few_shot, read_cohort
from fmct.data.labelled import LabelledBatch, build_labelled_loader
from fmct.downstream.config import FineTuning, rates_of
from fmct.downstream.start import Start, starting_point
from fmct.downstream.validation import predictor_of, validate
from fmct.errors import ConfigError, FmctError
from fmct.models.adaptation import EncoderHolder, adapt
from fmct.models.classifier import Classifier
from fmct.models.contrast import ContrastNetwork
from fmct.models.flops import encoder_flops, finetune_flops, forward_flops
from fmct.models.unet import UNetConfig
from fmct.probes.during_training import wait_for
from fmct.publish.run_facts import write_environment, write_series
from fmct.publish.task_record import TaskRecord, is_downstream_run, read_task, write_task
from fmct.table_files import write_rows
from fmct.tasks.backbone import configured, describe
from fmct.tasks.nct_pe import NctPe
from fmct.tasks.supervised import SupervisedTask
from fmct.train.schedule import Schedule
from fmct.train.session import Options, Plan, per_rank, train

log = logging.getLogger(__name__)
COHORT = "cohort.csv"
VALIDATION_LIMIT_S = 24 * 3600.0  # how long the other ranks wait for rank 0's validation


@dataclass(frozen=True)
class Prepared:
    """A run's patients, its beginning, and the description of its backbone (see fmct.tasks.backbone)."""

    cohort: Cohort
    start: Start
    backbone: dict[str, object]

    def record(self, kind: str, architecture: dict[str, object], targets: Sequence[str], *, pool: str) -> TaskRecord:
        """Return what RUN/task.json says of the network."""
        return TaskRecord(
            kind=kind,
            targets=tuple(targets),
            architecture=architecture,
            preprocessing=self.start.preprocessing,
            in_channels=self.start.preprocessing.channels,
            spacing_mm=self.start.spacing_mm,
            pool=pool,
            pretrained=self.start.pretrained,
        )

    def build(self, build_network: Callable[..., Any], architecture: dict[str, object]) -> Any:
        """Return a kind's untrained network on what the run starts from."""
        start = self.start
        return build_network(
            architecture,
            in_channels=start.preprocessing.channels,
            spacing_mm=start.spacing_mm,
            encoder=start.encoder,
        )


def prepare(config: FineTuning) -> Prepared:
    """Return the labelled data, drawn for few shots where asked for, and what the run starts from.

    Everything a user can get wrong is refused here, before anything is trained.
    """
    cohort = read_cohort(config.data)
    start = starting_point(config, cohort)
    if config.shots.patients:
        target = cohort.targets[0] if config.shots.balanced and cohort.targets else ""
        cohort = few_shot(cohort, config.shots.patients, seed=config.shots.seed, target=target)
    torch.manual_seed(config.seed)  # of the heads' first weights
    return Prepared(cohort, start, describe(start.backbone, mode=config.mode, lora=config.lora))


def adapted(network: EncoderHolder, config: FineTuning) -> EncoderHolder:
    """Return the network, of whose encoder as much trains as `mode` says."""
    return adapt(network, config.mode, rank=config.lora.rank, alpha=config.lora.alpha, targets=config.lora.targets)


def fine_tune_kind(
    config: Any,
    prepared: Prepared,
    architecture: dict[str, object],
    options: Options,
    device: torch.device,
    *,
    kind: ModuleType,
    task: Callable[..., SupervisedTask],
    targets: Sequence[str],
    pool: str = "max",
) -> int:
    """Build a kind's network and task (of fmct.tasks) from an architecture, fine-tune it, and return the exit code."""
    network = adapted(prepared.build(kind.build_network, architecture), config)
    record = prepared.record(kind.__name__.rpartition(".")[2], architecture, targets, pool=pool)
    return fine_tune(config, task(network, config.objective), record, prepared, options, device)


def fine_tune(
    config: FineTuning,
    task: SupervisedTask,
    record: TaskRecord,
    prepared: Prepared,
    options: Options,
    device: torch.device,
    *,
    ramp: bool = False,
    batches_from: Callable[[int], Iterator[Any]] | None = None,
    flops: float | None = None,
) -> int:
    """Train, validate, freeze the operating point, and return the exit code. The same call again goes on.

    ramp: whether the task reads the scheduled value of that name. batches_from: this rank's batches from a draw on,
    None for labelled windows. flops: of a training step for one sample, None for that of a window, 0 where it is not
    known.
    """
    cohort = prepared.cohort
    if flops is None:
        flops = step_flops(config, task.network, record, paired=_paired_share(task, cohort))
    validator = _validator(config, task, record, cohort, device)
    scheduled = {"learning_rate": config.schedules.learning_rate, "weight_decay": config.schedules.weight_decay}
    plan = Plan(
        config=config,
        output=config.output,
        task=task,
        batches_from=batches_from or _batches_of(config, prepared, device),
        schedule=Schedule({**scheduled, "ramp": config.schedules.ramp} if ramp else scheduled, total=config.steps),
        steps=config.steps,
        batch_size=config.batch_size,
        engine=config.engine,
        optim=rates_of(config),
        run=config.run,
        corpus={config.data.store: cohort_fingerprint(cohort)},
        warm_start=lambda: prepared.start.report,
        flops_per_volume=flops,
        evaluate=validator,
        evaluate_every=config.validation.every if config.validation.split else 0,
        describe=lambda folder: describe_run(folder, record, cohort),
        draws_of=lambda labelled: labelled.draws.tolist(),
    )
    code = train(plan, options, device)
    if code == 0 and not options.replay and config.validation.split:
        validator(config.steps)
    return code


def _batches_of(
    config: FineTuning, prepared: Prepared, device: torch.device
) -> Callable[[int], Iterator[LabelledBatch]]:
    batch = per_rank(config.batch_size, config.engine.accumulate)

    def batches_from(draw: int) -> Iterator[LabelledBatch]:
        """Yield this rank's batches from a draw on."""
        loader = build_labelled_loader(
            prepared.cohort,
            "train",
            prepared.start.preprocessing,
            config.windows,
            seed=config.seed,
            batch_size=batch,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start_draw=draw,
            workers=config.workers,
            device=device,
        )
        return iter(loader)

    return batches_from


def describe_run(folder: Path, record: TaskRecord, cohort: Cohort) -> None:
    """Write what export needs beside the checkpoints."""
    _check_same_start(folder, record)
    write_environment(folder)
    write_task(folder, record)
    samples = cohort.of("train")
    columns = ["patient", "series", "split", *record.targets]
    write_rows(folder / COHORT, columns, cohort_rows(cohort, record.targets))
    write_series(folder, [entry for s in samples for entry in (s.entry, s.pair) if entry is not None])


def _check_same_start(folder: Path, record: TaskRecord) -> None:
    """Raise ConfigError when the run in `folder` began from another encoder than the one that is there now."""
    if not is_downstream_run(folder):
        return
    before, now = read_task(folder), record
    if before.preprocessing != now.preprocessing or before.pretrained.get("fingerprint") != now.pretrained.get(
        "fingerprint"
    ):
        raise ConfigError(
            f"{folder} began from another encoder than the one that encoder= names now: its weights or preprocessing "
            "differ. Put the former one back, choose another output=, or start anew with --fresh."
        )


def cohort_rows(cohort: Cohort, targets: Sequence[str]) -> list[dict[str, object]]:
    """Return the rows of RUN/cohort.csv: who is in which split, and what is known of each series, by pseudonyms.

    `fmct predict --only` and `fmct evaluate` take it. Without a table of labels the mask tells.
    """
    rows: list[dict[str, object]] = []
    for sample in cohort.samples:
        names = cohort.targets or tuple(targets)
        by_mask = 1.0 if sample.mask is not None else 0.0 if sample.mask_known_empty else math.nan
        known = dict(zip(names, sample.labels or (by_mask,), strict=True))
        labels = {t: None if math.isnan(known[t]) else int(known[t]) for t in targets}
        rows.append({"patient": sample.patient, "series": sample.entry.id, "split": sample.split, **labels})
    return rows


def cohort_fingerprint(cohort: Cohort) -> str:
    """Return a hash of what a run learns from: the training series, their labels, the masks' bytes, and pairs."""
    digest = hashlib.sha256()
    for sample in cohort.of("train"):
        mask = sha256_of(sample.mask) if sample.mask is not None else int(sample.mask_known_empty) - 1
        pair = sample.pair.content_hash if sample.pair is not None else ""
        digest.update(f"{sample.entry.content_hash} {sample.labels} {mask} {pair} {sample.pair_weight}\n".encode())
    return digest.hexdigest()


def step_flops(config: FineTuning, network: nn.Module, record: TaskRecord, *, paired: float = 0.0) -> float:
    """Return the operations of one training step for one window: forward and, of what trains, backward.

    paired: the share, 0 to 1, of windows whose paired scan the second pathway of a DualPhase reads in the same step
    (encoder, decoder, classifier and projectors once more). Losses are left out.
    """
    size, backbone = record.preprocessing.input.size_voxels, configured(record.architecture)

    def encoder_over(channels: int) -> int:
        """Return the encoder's operations over one window; those of a U-Net count among the heads."""
        return 0 if isinstance(backbone, UNetConfig) else encoder_flops(backbone, size, in_channels=channels)

    encoder = encoder_over(record.in_channels)
    if isinstance(network, (Classifier, ContrastNetwork)):
        return float(finetune_flops(encoder, 0, mode=config.mode))  # their head is a few rows
    x, spacing = torch.empty((1, record.in_channels, *size)), torch.empty((1, 3))
    whole = forward_flops(network, x, spacing=spacing)
    found = float(finetune_flops(encoder, max(whole - encoder, 0), mode=config.mode))
    if not paired:
        return found
    channels = record.architecture["dual_phase"]["in_channels_b"] or record.in_channels
    encoder = encoder_over(channels)
    second = forward_flops(network, x, torch.empty((1, channels, *size)), spacing=spacing) - whole
    return found + paired * finetune_flops(encoder, max(second - encoder, 0), mode=config.mode)


def _paired_share(task: nn.Module, cohort: Cohort) -> float:
    """Return the share of training series whose paired scan the task reads: about that of windows."""
    training = cohort.of("train")
    if not (isinstance(task, NctPe) and task.dual):
        return 0.0
    return sum(sample.pair is not None for sample in training) / len(training)


def _validator(
    config: FineTuning, task: nn.Module, record: TaskRecord, cohort: Cohort, device: torch.device
) -> Callable[[int], None]:
    def validator(step: int) -> None:
        """Validate the task as it stands, on rank 0; the other ranks wait without a collective."""
        done = Path(config.output) / "validation" / f"step-{step:06d}" / "done"
        if distributed.rank() == 0:
            done.unlink(missing_ok=True)
        distributed.barrier()
        if distributed.rank() == 0:
            done.parent.mkdir(parents=True, exist_ok=True)
            try:
                validate(predictor_of(task, record, device), cohort, config.validation, Path(config.output), step=step)
            except FmctError as error:
                log.warning("validation at step %d: %s", step, error)
            finally:
                done.touch()
        wait_for(done, VALIDATION_LIMIT_S)

    return validator

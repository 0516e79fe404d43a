"""Head-CT findings, one binary head each: linear or attentive on a frozen encoder, or with the encoder fine-tuned.

    fmct finetune configs/finetune/head_ct_paper.yaml encoder=ENCODER data.store=STORE data.labels=LABELS output=RUN

The protocol of FM-HCT, as meant: balanced draws, the epoch of the best validation AUROC, n-shot draws. It ends with
predictions of the validation and test splits and a table beside the published numbers. Not a medical device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fmct import distributed
from fmct.config import MISSING
from fmct.data.cohort import Cohort, CohortConfig, read_cohort, refuse_overlap
from fmct.data.finding_batches import FindingBatch, FindingData, Jitter, finding_batches
from fmct.downstream.head_ct_model import OperatingPointConfig, keep_best, record_of
from fmct.downstream.head_ct_run import build_heads, conclude, feature_source, fingerprint, first_encoder, read_split
from fmct.downstream.repeat import RepeatConfig
from fmct.downstream.run import describe_run
from fmct.publish.task_record import TaskRecord
from fmct.tasks.finding_heads import FindingHeads
from fmct.train.engine import EngineConfig
from fmct.train.optim import OptimConfig
from fmct.train.schedule import Schedule, ScheduleConfig
from fmct.train.session import Options, Plan, RunConfig, per_rank, train


@dataclass(frozen=True)
class Config:
    """The run. encoder: a folder, or another project's file with its `layout` (fmhct, voxelfm, 3dino) and its options.
    mode: frozen (heads alone, on cached features) or full (one run a finding, in OUTPUT/FINDING). shots: series with
    and without each finding from as many patients, 0 for all. published: rsna or cq500, for the table. cache: folder of
    features or inputs, shared by runs, OUTPUT.cache when empty. splits: train, validation, test by name. The encoder's
    learning rate is optim.encoder_multiplier times the heads'. flip: probabilities along the input's axes.
    validation: how thresholds are chosen for `fmct export`. repeat: over seeds.
    """

    recipe: str = "finetune.head_ct"
    output: str = MISSING
    encoder: str = MISSING
    layout: str = ""
    layout_options: dict[str, Any] = field(default_factory=dict)
    from_scratch: bool = False
    data: CohortConfig = field(default_factory=CohortConfig)
    mode: str = "frozen"
    head: str = "linear"
    shots: int = 0
    seed: int = 0
    epochs: int = 10
    draws_per_epoch: int = 512
    batch_size: int = 64
    flip: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.1])
    shift: list[float] = field(default_factory=lambda: [0.5, 0.1])
    cache: str = ""
    splits: list[str] = field(default_factory=lambda: ["train", "validation", "test"])
    published: str = ""
    learning_rate: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(1e-3, start=0.0, end=1e-6, warmup=0.1))
    weight_decay: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(0.01, kind="constant"))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(clip=1.0, encoder_multiplier=0.01))
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(kind="torch"))
    run: RunConfig = field(default_factory=RunConfig)
    validation: OperatingPointConfig = field(default_factory=OperatingPointConfig)
    repeat: RepeatConfig = field(default_factory=RepeatConfig)

    @property
    def epoch(self) -> int:
        """Updates between two looks at validation."""
        return max(1, round(self.draws_per_epoch / self.batch_size))


def main(config: Config, options: Options, device: torch.device) -> int:
    """Train every finding's head, write predictions and the table, and return the exit code."""
    cohort = read_cohort(config.data)
    encoder = first_encoder(config.encoder, config.layout, config.layout_options, device=device,
                            untrained=config.seed if config.from_scratch else None)  # fmt: skip
    notes = refuse_overlap(cohort, encoder.facts, on_overlap=config.data.on_overlap, split=config.splits[2])
    cache = feature_source(encoder, config.cache or f"{config.output}.cache", config.mode, config.head)
    groups = [list(cohort.targets)] if config.mode == "frozen" else [[target] for target in cohort.targets]
    parts = []
    for findings in groups:
        data = read_split(cohort, cache, findings, config.splits, shots=config.shots, seed=config.seed)
        output = config.output if config.mode == "frozen" else str(Path(config.output) / findings[0])
        task = build_heads(encoder, findings, data, kind=config.head, train_encoder=config.mode == "full",
                           epoch=config.epoch, seed=config.seed)  # fmt: skip
        record = record_of(encoder, findings, head=config.head, untrained=config.from_scratch, notes=notes)
        train(_plan(config, data[0], task, output, cohort, record, device), options, device)
        if options.replay:
            return 0
        keep_best(output, task, encoder, data[1], config.validation)
        parts.append((task, data))
    if distributed.rank() == 0:
        print(conclude(config.output, parts, config.splits, seed=config.seed, published=config.published,
                       fine_tuned=config.mode == "full", notes=notes))  # fmt: skip
    return 0


def _plan(config: Config, data: FindingData, task: FindingHeads, output: str, cohort: Cohort, record: TaskRecord,
          device: torch.device) -> Plan:  # fmt: skip
    steps = config.epochs * config.epoch
    batch = per_rank(config.batch_size, config.engine.accumulate)
    jitter = Jitter.of(config.flip, config.shift) if config.mode == "full" else None

    def batches_from(draw: int) -> Iterator[FindingBatch]:
        """Yield this rank's batches from a draw on."""
        return finding_batches(
            data, seed=config.seed, batch_size=batch, rank=distributed.rank(), device=device, start_draw=draw,
            world_size=distributed.world_size(), jitter=jitter,
        )  # fmt: skip

    return Plan(
        config=config, output=output, task=task, batches_from=batches_from, steps=steps, batch_size=config.batch_size,
        schedule=Schedule({"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}, total=steps),
        engine=config.engine, run=config.run, corpus=fingerprint(cohort),
        optim=config.optim if config.mode == "full" else replace(config.optim, clip=0.0),  # heads stay independent
        describe=lambda folder: describe_run(folder, record, cohort), draws_of=lambda batch: batch.draws.tolist(),
    )  # fmt: skip

"""One network's training as a run of its own: the engine, loop and checkpoints of every run, and its weights."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fmct.artefacts import sha256_of
from fmct.config import plain
from fmct.data.lesion_patches import Arrays, PatchBatch, PatchSampler, patch_batches
from fmct.errors import ArtefactError
from fmct.lesions.settings import LesionConfig, PhaseConfig
from fmct.models.adaptation import EncoderHolder
from fmct.publish.run_facts import write_environment
from fmct.publish.weights import read_weights
from fmct.shapes import Triple, triple
from fmct.tasks.lesion_proposal import load_trained
from fmct.tasks.supervised import SupervisedTask
from fmct.train import checkpoint
from fmct.train.engine import EngineConfig
from fmct.train.schedule import Schedule
from fmct.train.session import Options, Plan, RunConfig, train


@dataclass(frozen=True)
class PhaseRecord:
    """What RUN/config.yaml says of a phase: the settings that what it learns depends on."""

    output: str = ""
    phase: str = ""
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)


def train_phase(
    folder: Path,
    task: SupervisedTask,
    config: LesionConfig,
    training: PhaseConfig,
    *,
    settings: Any,
    sampler: Callable[[int], PatchSampler],
    arrays: Callable[[str], Arrays],
    corpus: Mapping[str, str],
    options: Options,
    device: torch.device,
) -> None:
    """Train to the last step; the same call again goes on at the newest checkpoint, bit for bit.

    settings: the dataclass of what it learns by. sampler(draw): whose items a draw is of. corpus: fingerprints of what
    it learns from.
    """
    size = patch_size(training)

    def batches_from(draw: int) -> Iterator[PatchBatch]:
        """Yield batches from a draw on."""
        return patch_batches(
            sampler, arrays, size, training.augmentation, seed=config.seed, batch_size=training.batch_size,
            start_draw=draw, device=device,
        )  # fmt: skip

    schedules = {"learning_rate": training.learning_rate, "weight_decay": training.weight_decay}
    record = PhaseRecord(str(folder), folder.name, config.seed, plain(settings), config.engine, config.run)
    train(
        Plan(
            config=record, output=str(folder), task=task, batches_from=batches_from, steps=training.steps,
            schedule=Schedule(schedules, total=training.steps), batch_size=training.batch_size, engine=config.engine,
            optim=training.optim, run=config.run, corpus=corpus, describe=write_environment,
            draws_of=lambda batch: batch.draws.tolist(),
        ),
        options,
        device,
    )  # fmt: skip


def trained(folder: Path, network: EncoderHolder) -> EncoderHolder:
    """Return the network with the newest checkpoint's weights of a phase, in evaluation mode. Raises ArtefactError."""
    found = checkpoint.newest(folder / "checkpoints")
    if found is None:
        raise ArtefactError(f"{folder}: no checkpoint that verifies. Run its stage again.")
    return load_trained(network, read_weights(found / checkpoint.PARAMETERS))


def weights_of(folder: Path) -> str:
    """Return a hash of a phase's newest weights. Raises ArtefactError when there are none."""
    found = checkpoint.newest(folder / "checkpoints")
    if found is None:
        raise ArtefactError(f"{folder}: no checkpoint that verifies. Run its stage again.")
    return sha256_of(found / checkpoint.PARAMETERS)[:16]


def patch_size(training: PhaseConfig) -> Triple:
    """Return the patch's sides (z, y, x)."""
    return triple(training.patch, "training.patch")

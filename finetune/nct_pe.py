"""Embolism on non-contrast CT, a CTPA of the same patient beside it in training alone (CPMN-style, fmct's definitions).

    fmct finetune configs/finetune/nct_pe.yaml encoder=ENCODER data.store=STORE data.pairs=PAIRS … output=RUN --nproc 8

The published equations of CPMN were not available: what is trained here is defined in fmct.tasks.nct_pe and the losses
that it names. Any two registered series serve. Predictions read the non-contrast series alone, and the exported model
holds nothing of the other pathway. Research only, not a medical device.

Ablations, by key: objective.weights.ctpa=0 alignment=0 discrepancy=0 (non-contrast alone), objective.alignment.mode
(mutual, to_nct, to_ctpa), network.share (encoder, none, all), objective.discrepancy.kind (push-pull, infonce).
"""

from dataclasses import dataclass, field, replace

import torch

from fmct.downstream.config import FineTuning
from fmct.downstream.run import Prepared, adapted, fine_tune, prepare
from fmct.errors import ConfigError, DataError
from fmct.losses.tokens import small_cell
from fmct.models.dual_phase import DualPhase, DualPhaseConfig
from fmct.tasks.nct_pe import NctPe, NctPeConfig, build_network, describe_network
from fmct.train.session import Options


@dataclass(frozen=True)
class Config(FineTuning):
    """A cross-phase run. network: the two pathways; objective: the terms and their weights.

    allow_small_cells: align maps whose cells are under 4 mm, which is less than what registration leaves.
    """

    recipe: str = "finetune.nct_pe"
    network: DualPhaseConfig = field(default_factory=DualPhaseConfig)
    objective: NctPeConfig = field(default_factory=NctPeConfig)
    allow_small_cells: bool = False


def main(config: Config, options: Options, device: torch.device) -> int:
    """Train, and return the exit code."""
    if len(config.data.targets) != 1:
        raise ConfigError(f"data.targets: one finding is learned here, such as [pe]; got {config.data.targets}.")
    prepared = prepare(config)
    _check_pairs(config, prepared)
    architecture = describe_network(prepared.backbone, _pathways(config))
    network = prepared.build(build_network, architecture)
    _check_cells(config, network, prepared)
    adapted(network, config)
    task = NctPe(network, config.objective, seed=config.seed)
    record = prepared.record("nct_pe", architecture, prepared.cohort.targets, pool="max")
    return fine_tune(config, task, record, prepared, options, device, ramp=True)


def _pathways(config: Config) -> DualPhaseConfig:
    """Return the network's configuration; paired scans with windows of their own have a first layer of their own."""
    own = len(config.windows.paired_windows)
    if config.network.in_channels_b is not None or not own:
        return config.network
    return replace(config.network, in_channels_b=own)


def _check_pairs(config: Config, prepared: Prepared) -> None:
    """Refuse terms between phases that no pair of the training split could ever feed."""
    weights, training = config.objective.weights, prepared.cohort.of("train")
    if weights.reads_ctpa and not any(sample.pair is not None for sample in training):
        raise DataError(
            "objective.weights: the terms ctpa, alignment and kl read a paired scan, and no training series has one "
            "that was accepted. Give data.pairs=TABLE, or set objective.weights to {ctpa: 0, alignment: 0}: the "
            "non-contrast baseline."
        )


def _check_cells(config: Config, network: DualPhase, prepared: Prepared) -> None:
    """Refuse to align maps that are finer than registration is exact, unless that is meant."""
    if not config.objective.weights.alignment or config.allow_small_cells or config.objective.alignment.tolerance:
        return
    for stride in network.aligned_strides[-config.objective.alignment.taps :]:
        if warning := small_cell(prepared.start.spacing_mm, stride):
            raise ConfigError(f"{warning} Or say that it is meant: allow_small_cells=true.")

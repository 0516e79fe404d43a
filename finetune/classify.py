"""Labels of series or patients with any encoder: a linear, an attentive, or a multiple-instance head.

    fmct finetune configs/finetune/classify.yaml encoder=ENCODER data.labels=TABLE 'data.targets=[NAME]' … mode=frozen

mode=frozen trains the head alone, lora and full change the encoder too; from_scratch=true is the control with the same
budget. Each update draws windows anew, so the frozen encoder runs every time; a linear probe on features that are
computed once is configs/finetune/probe.yaml: 1 000 series in seconds.
A head of kind `mil` decides on a patient from all windows of a batch that are the patient's. Research only.
"""

from dataclasses import dataclass, field

import torch

from fmct.downstream.config import FineTuning
from fmct.downstream.run import fine_tune_kind, prepare
from fmct.errors import ConfigError
from fmct.models.classifier import ClassifierConfig
from fmct.tasks import classification
from fmct.tasks.classification import ClassificationConfig
from fmct.train.session import Options


@dataclass(frozen=True)
class Config(FineTuning):
    """A classification run.

    network: the head. objective: its loss. pool: how a series' probability comes from its windows: their `max` or
    `mean`; a head of kind mil decides on all of them.
    """

    recipe: str = "finetune.classify"
    network: ClassifierConfig = field(default_factory=ClassifierConfig)
    objective: ClassificationConfig = field(default_factory=ClassificationConfig)
    pool: str = "max"


def main(config: Config, options: Options, device: torch.device) -> int:
    """Train, and return the exit code."""
    if config.unet is not None:
        raise ConfigError("unet: classification reads a transformer's tokens; take segmentation or nct_pe for a U-Net.")
    if not config.data.targets:
        raise ConfigError("data.targets: name the columns of the label table to learn, such as data.targets=[pe].")
    weights = config.objective.positive_weight
    if weights is not None and len(weights) != len(config.data.targets):
        raise ConfigError(f"objective.positive_weight: one for each of {config.data.targets}, got {weights}.")
    prepared = prepare(config)
    targets = prepared.cohort.targets
    architecture = classification.describe_network(prepared.backbone, config.network, outputs=len(targets))
    return fine_tune_kind(
        config, prepared, architecture, options, device, kind=classification, task=classification.Classification,
        targets=targets, pool="bag" if config.network.head == "mil" else config.pool,
    )  # fmt: skip

"""Segmentation of lesions with any encoder: its tokens of several depths under a dense decoder, or a U-Net beside it.

    fmct finetune configs/finetune/segment.yaml encoder=ENCODER data.store=STORE data.masks=MASKS output=RUN

The same command again resumes. from_scratch=true is the control with the same budget. Research only.
"""

from dataclasses import dataclass, field

import torch

from fmct.downstream.config import FineTuning
from fmct.downstream.run import fine_tune_kind, prepare
from fmct.errors import ConfigError
from fmct.models.segmenter import SegmenterConfig
from fmct.tasks import segmentation
from fmct.tasks.segmentation import SegmentationConfig
from fmct.train.session import Options


@dataclass(frozen=True)
class Config(FineTuning):
    """A segmentation run. network: the decoder; objective: its loss."""

    recipe: str = "finetune.segment"
    network: SegmenterConfig = field(default_factory=SegmenterConfig)
    objective: SegmentationConfig = field(default_factory=SegmentationConfig)


def main(config: Config, options: Options, device: torch.device) -> int:
    """Train, and return the exit code."""
    if not config.data.masks:
        raise ConfigError("data.masks: segmentation learns from masks; name the folder that holds them.")
    prepared = prepare(config)
    cohort = prepared.cohort
    target = cohort.targets[cohort.mask_target or 0] if cohort.targets else "lesion"
    architecture = segmentation.describe_network(prepared.backbone, config.network)
    return fine_tune_kind(
        config, prepared, architecture, options, device,
        kind=segmentation, task=segmentation.Segmentation, targets=[target],
    )  # fmt: skip

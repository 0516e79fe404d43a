"""Small lesions by proposal, discrimination and clean-up: microbleeds on MR, or nodules on CT with another config.

    fmct finetune configs/finetune/microbleed.yaml data.store=STORE data.masks=MASKS prepare.brain_masks=BRAINS \
        lesion_sign=dark output=RUN

The same command again does what is left; `stage` runs one stage alone. Research only, not a medical device.
"""

from dataclasses import dataclass

import torch

from fmct.data.cohort import read_cohort
from fmct.errors import ConfigError
from fmct.lesions.model_folder import describe
from fmct.lesions.pipeline import Pipeline
from fmct.lesions.settings import LesionConfig
from fmct.lesions.subjects import subjects_of
from fmct.train.session import Options


@dataclass(frozen=True)
class Config(LesionConfig):
    """The run. See fmct.lesions.settings for its blocks: prepare, propose, discriminate, clean, evaluate."""

    recipe: str = "finetune.microbleed"


def main(config: Config, options: Options, device: torch.device) -> int:
    """Run the stages that are left, and return the exit code."""
    if not config.data.masks:
        raise ConfigError("data.masks: a detector learns from masks of lesions; name the folder that holds them.")
    cohort = read_cohort(config.data)
    subjects = subjects_of(cohort, config.prepare.brain_masks, config.evaluate.ignore)
    pipeline = Pipeline(config, subjects, options=options, device=device)
    pipeline.run(config.stage)
    describe(pipeline)
    return 0

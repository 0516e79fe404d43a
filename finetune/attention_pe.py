"""Embolism on CTPA from sparse masks and patient labels: slabs with guided attention, then a recurrent reader.

    fmct finetune configs/finetune/attention_pe.yaml data.store=STORE data.labels=TABLE data.masks=MASKS output=SLABS
    fmct finetune configs/finetune/attention_pe.yaml stage=series slabs_run=SLABS data.store=… data.labels=… output=RUN

After Shi et al. 2020 (attention-guided two-stage framework). Stage one classifies 2.5D slabs and holds the class
activation map to the clot where there is a mask; stage two reads the frozen features of a whole series. The same
command again resumes; encoder=FOLDER puts a pretrained 3D transformer in the ResNet's place. Not a medical device.
"""

from dataclasses import dataclass

import torch

from fmct.downstream.attention_pe import AttentionPeConfig, check_config, train_slabs
from fmct.downstream.attention_pe_series import train_series
from fmct.train.session import Options


@dataclass(frozen=True)
class Config(AttentionPeConfig):
    """A run of one stage."""

    recipe: str = "finetune.attention_pe"


def main(config: Config, options: Options, device: torch.device) -> int:
    """Train the stage that `stage` names, and return the exit code."""
    check_config(config)
    if config.stage == "series":
        return train_series(config, options, device)
    return train_slabs(config, options, device)

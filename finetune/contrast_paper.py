"""Intravenous contrast from slices, as Ye et al. (2022) published it: five networks, head-neck, then chest.

    fmct finetune configs/finetune/contrast_paper.yaml input.template=CT data.store=STORE data.labels=CSV output=RUN
    fmct finetune configs/finetune/contrast_paper_chest.yaml start=RUN input.template=CHEST_CT … output=CHEST

Scans are registered to a named template, cut to a body part's slices and kept on disk; one label a scan, by id. It
ends with predictions of validation and test scans and a table beside the published figures. Research only.
"""

from dataclasses import dataclass

import torch

from fmct import distributed
from fmct.downstream.contrast_paper import build_task, plan_of
from fmct.downstream.contrast_paper_config import ContrastPaperTraining
from fmct.downstream.contrast_paper_inputs import read_inputs
from fmct.downstream.contrast_paper_report import conclude
from fmct.train.session import Options, train


@dataclass(frozen=True)
class Config(ContrastPaperTraining):
    """The run; see fmct.downstream.contrast_paper_config.ContrastPaperTraining for every key."""

    recipe: str = "finetune.contrast_paper"


def main(config: Config, options: Options, device: torch.device) -> int:
    """Prepare the scans, train, write predictions and the table, and return the exit code."""
    inputs = read_inputs(config)
    task = build_task(config, inputs, device)
    code = train(plan_of(config, inputs, task, device), options, device)
    if code == 0 and not options.replay and distributed.rank() == 0:
        print(conclude(config, inputs, task))
    return code

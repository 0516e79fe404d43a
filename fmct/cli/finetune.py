"""Train a downstream task from an encoder, or from scratch. The same command again resumes.

  fmct finetune configs/finetune/nct_pe_phantom.yaml data.store=STORE data.pairs=pairs.csv output=RUN
  fmct finetune configs/finetune/segment.yaml encoder=ENCODER data.store=STORE data.mask_table=masks.csv output=RUN
  fmct finetune configs/finetune/classify.yaml encoder=ENCODER mode=frozen data.labels=labels.csv … output=RUN
  fmct finetune configs/finetune/segment.yaml … output=SCRATCH from_scratch=true        the control, same budget

The last update is followed by predictions for the validation split, which choose the operating point; then
`fmct export RUN MODEL`, `fmct predict MODEL SCANS OUT`, `fmct evaluate OUT/predictions.csv LABELS REPORT`.
Exit codes as of `fmct pretrain`: 0 done · 2 a mistake you can mend · 75 stopped by a signal, run again · 76 loss not
finite three times in a row · 77 an alarm (with run.stop_on_alarm). Not a medical device.
"""

import argparse

from fmct.cli import training
from fmct.cli.training import add_arguments

__all__ = ["HELP", "add_arguments", "run"]

HELP = "a downstream task; the same command again resumes"


def run(arguments: argparse.Namespace) -> int:
    """Train, in this process or in `--nproc` copies of it."""
    return training.run(arguments, verb="finetune", example="configs/finetune/segment.yaml")

"""Train an encoder by self-supervision. The same command again resumes where the newest sound checkpoint is.

  fmct pretrain configs/pretrain/demo.yaml store=STORE output=RUN
  fmct pretrain configs/pretrain/vit_base.yaml store=STORE output=RUN --nproc 8
  fmct pretrain configs/pretrain/vit_base.yaml store=STORE output=RUN seed=1 schedules.learning_rate.peak=5e-4

Also runs unchanged under torchrun, srun and deepspeed (then without --nproc); pretrain/slurm.sh shows many nodes.
Exit codes: 0 done · 2 a mistake you can mend · 75 stopped by a signal, state saved, run again · 76 loss not finite
three times in a row · 77 collapsed (with run.stop_on_alarm or objective.health.stop).
"""

import argparse

from fmct.cli import training
from fmct.cli.training import add_arguments

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train; the same command again resumes"


def run(arguments: argparse.Namespace) -> int:
    """Train, in this process or in `--nproc` copies of it."""
    return training.run(arguments, verb="pretrain", recipe="pretrain.dino", example="configs/pretrain/demo.yaml")

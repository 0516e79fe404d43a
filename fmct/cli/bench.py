"""Measure how fast fmct is on this machine, and how much memory it takes, each figure beside its floor.

A table goes to standard error, JSON to standard output or to a file. The exit code says
nothing about targets (1: a measurement died, for want of memory say). Ratios
hold within one run; times want an idle machine. Without --data, phantoms of usual grids stand for scans.

  views   2 + 2 views of 3 × 96³ from a head, one thread
  store   the crops of a training sample, one thread, beside a raw decode
  ingest  read, pyramid, write of one series on one core, beside MONAI
  step    whole training steps beside the best square product; profile; on a GPU also bigger models and data wait
  finetune  steps of classification with the whole encoder in training, beside pretraining's of the same run
  predict a whole chest with a ViT-S segmenter, file to masks, beside its FLOPs at the rate of a training step
  memory  of an ingest worker, a loader worker, a training step
  lesions radial symmetry of 256³ and the clean-up of its candidates, one core
  phantoms  a synthetic pair of 64³, non-contrast and angiogram, one core
  contrast  the gate with a ViT-S on a chest, after reading; on a GPU also series a second
  gate    what every command pays before it begins

examples:
  fmct bench
  fmct bench views store --data scans/ --output bench.json
  fmct bench step --threads 2 --quick
"""

import argparse
import os

HELP = "how fast is it here, beside its floor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    names = "views, store, ingest, step, finetune, predict, memory, lesions, phantoms, contrast, gate; or all"
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=names)
    parser.add_argument("--data", default="", metavar="PATH", help="a CT scan, or a folder with names like head, chest")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute: shows that all of it works")
    parser.add_argument("--output", default="", metavar="FILE.json", help="write the JSON here, not to standard output")
    parser.add_argument("--threads", type=int, default=0, help="of a training step (default: every core)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and return 0 whatever came out, 1 when a measurement died."""
    if arguments.threads:  # before torch is there: an idle thread of a pool would spin, and count as processor time
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(arguments.threads)
    from fmct.bench.run import run_benches, to_text

    content = run_benches(
        arguments.benches,
        data=arguments.data,
        quick=arguments.quick,
        threads=arguments.threads,
        output=arguments.output,
    )
    print(arguments.output or to_text(content))
    return 1 if content["failed"] else 0

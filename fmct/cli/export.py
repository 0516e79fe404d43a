"""Write the encoder or model folder of a run: weights, preprocessing, card, golden numbers, checksums.

Of a pretraining run: the teacher (the average of the trained weights) of the newest checkpoint that verifies. Of a
run of `fmct finetune`: the network that predicts, with its frozen operating point. A folder of several of its runs (one
a seed, one a finding) becomes a folder of as many models.

example:
  fmct export runs/vit_small encoders/vit_small
  fmct embed encoders/vit_small scans/ features.npz
  fmct export runs/nct_pe models/nct_pe
  fmct predict models/nct_pe scans/ predictions/
"""

import argparse

HELP = "run → publishable encoder or model folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="run folder of `fmct pretrain` or `fmct finetune`")
    parser.add_argument("encoder", metavar="ENCODER", help="folder to write")
    parser.add_argument("--with-heads", action="store_true", help="also write the projection heads")
    parser.add_argument("--student", action="store_true", help="the trained weights instead of their average")
    parser.add_argument("--step", type=int, help="checkpoint of this step instead of the newest")
    parser.add_argument("--license", default="other", metavar="ID", help="licence id for the card, such as cc-by-4.0")
    parser.add_argument("--overwrite", action="store_true", help="replace an encoder folder of another run")


def run(arguments: argparse.Namespace) -> int:
    """Export and say what was written."""
    from pathlib import Path

    from fmct.lesions import commands as lesions
    from fmct.publish.export_run import export_run

    if lesions.is_lesion_run(Path(arguments.run)):
        return lesions.export(arguments)
    said = export_run(
        arguments.run,
        arguments.encoder,
        step=arguments.step,
        student=arguments.student,
        with_heads=arguments.with_heads,
        license_id=arguments.license,
        overwrite=arguments.overwrite,
    )
    print(said)
    return 0

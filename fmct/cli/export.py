"""Write the encoder or model folder of a run: weights, preprocessing, card, golden numbers, checksums.

Of a pretraining run: the teacher (the average of the trained weights) of the newest checkpoint that verifies. Of a
run of `fmct finetune`: the network that predicts, with its frozen operating point.

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

    from fmct.publish.export import export
    from fmct.publish.load import load_encoder
    from fmct.publish.task_record import is_downstream_run

    if is_downstream_run(Path(arguments.run)):
        return _export_model(arguments)

    folder = export(
        arguments.run,
        arguments.encoder,
        step=arguments.step,
        student=arguments.student,
        with_heads=arguments.with_heads,
        license_id=arguments.license,
        overwrite=arguments.overwrite,
    )
    encoder = load_encoder(folder, device="cpu")
    encoder.selftest()
    spec = encoder.preprocessing.input
    size = " × ".join(str(n) for n in spec.size_voxels)
    at = f" at {' × '.join(f'{s:g}' for s in spec.spacing_mm)} mm" if spec.spacing_mm else ""
    print(
        f"{folder}: the {encoder.facts['source']} of step {encoder.facts['step']}, {encoder.num_features} features, "
        f"input {spec.mode} of {size} voxels{at}; self-test passed.\n"
        f"Next: fmct embed {folder} SOURCE_OR_STORE features.npz, or fmct publish {folder} OWNER/NAME --dry-run"
    )
    return 0


def _export_model(arguments: argparse.Namespace) -> int:
    from fmct.errors import ConfigError
    from fmct.publish.export_model import export_model
    from fmct.publish.load_model import load_model

    if arguments.with_heads or arguments.student:
        raise ConfigError(
            f"{arguments.run}: is a run of `fmct finetune`: its heads are part of the model, and it has no teacher. "
            "Leave out --with-heads and --student."
        )
    folder = export_model(
        arguments.run,
        arguments.encoder,
        step=arguments.step,
        license_id=arguments.license,
        overwrite=arguments.overwrite,
    )
    model = load_model(folder, device="cpu")
    model.selftest()
    decision = f"rule {model.decision.rule}" if model.decision else "no operating point: probabilities only"
    print(
        f"{folder}: {model.record.kind} of step {model.facts['step']}, targets {', '.join(model.targets)}, {decision}; "
        f"self-test passed.\nNext: fmct predict {folder} SCANS OUT"
    )
    return 0

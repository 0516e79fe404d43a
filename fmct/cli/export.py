"""Write the encoder folder of a run: weights, preprocessing, model card, golden numbers, checksums.

The teacher (the average of the trained weights) of the newest checkpoint that verifies.

example:
  fmct export runs/vit_small encoders/vit_small
  fmct embed encoders/vit_small scans/ features.npz
"""

import argparse

HELP = "run → publishable encoder folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="run folder that `fmct pretrain` wrote")
    parser.add_argument("encoder", metavar="ENCODER", help="folder to write")
    parser.add_argument("--with-heads", action="store_true", help="also write the projection heads")
    parser.add_argument("--student", action="store_true", help="the trained weights instead of their average")
    parser.add_argument("--step", type=int, help="checkpoint of this step instead of the newest")
    parser.add_argument("--license", default="other", metavar="ID", help="licence id for the card, such as cc-by-4.0")
    parser.add_argument("--overwrite", action="store_true", help="replace an encoder folder of another run")


def run(arguments: argparse.Namespace) -> int:
    """Export and say what was written."""
    from fmct.publish.export import export
    from fmct.publish.load import load_encoder

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

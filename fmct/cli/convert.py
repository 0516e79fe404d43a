"""Convert another project's published weights into an encoder folder, which every command takes.

LAYOUT names the project whose file it is: fmhct (FM-HCT: head CT), voxelfm (VoxelFM), 3dino (3DINO). Only tensors are
read of a pickle, nothing in it is run; a tensor that is missing, left over or of another shape is an error. The
project's own preprocessing goes into the folder, with golden numbers and checksums. The weights' licence stays their
owner's: say it with --license.

examples:
  fmct convert fmhct model_weights.pth encoders/fmhct --license cc-by-nc-4.0
  fmct convert fmhct checkpoint.pth encoders/fmhct role=teacher window_order=resize-window
  fmct convert voxelfm voxelfm.pth encoders/voxelfm
  fmct convert 3dino 3dino_vit_weights.pth encoders/3dino modality=CT
"""

import argparse

HELP = "another project's published weights → encoder folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("layout", metavar="LAYOUT", help="fmhct, voxelfm or 3dino")
    parser.add_argument("file", metavar="FILE", help="the weights, as their owners ship them")
    parser.add_argument("encoder", metavar="ENCODER", help="folder to write")
    parser.add_argument("options", nargs="*", metavar="key=value", help="of the layout, such as role=teacher")
    parser.add_argument("--license", default="other", metavar="ID", help="licence id of the weights, for the card")
    parser.add_argument("--overwrite", action="store_true", help="replace an encoder folder that is there")


def run(arguments: argparse.Namespace) -> int:
    """Convert, check what was written, and say what it is."""
    from fmct.config import read_tree
    from fmct.errors import ConfigError
    from fmct.publish.adapters import convert
    from fmct.publish.export_run import describe
    from fmct.publish.load import load_encoder

    strangers = [item for item in arguments.options if "=" not in item]
    if strangers:
        raise ConfigError(f"{strangers[0]}: expected options as key=value, such as role=teacher.")
    folder = convert(
        arguments.file,
        arguments.encoder,
        layout=arguments.layout,
        license_id=arguments.license,
        overwrite=arguments.overwrite,
        **read_tree([], arguments.options),
    )
    encoder = load_encoder(folder, device="cpu")
    encoder.selftest()
    print(
        f"{folder}: {arguments.layout}, {describe(encoder)}; self-test passed.\n"
        f"Next: fmct embed {folder} SOURCE_OR_STORE features.npz, or fmct finetune CONFIG encoder={folder}"
    )
    return 0

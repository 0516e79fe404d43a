"""Tell what a scan, store, run or encoder is, and whether it is sane.

Exit code 0: sane; 1: not sane; 2: not something that can be inspected.

example:
  fmct inspect scan.nii.gz
  fmct inspect STORE --json
  fmct inspect runs/vit_small
"""

import argparse

HELP = "what is this scan, store, run or encoder, and is it sane"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("path", metavar="PATH", help="a scan, a folder of scans, a store, a run or an encoder folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--modality", default="CT", help="what a scan is taken as: CT, PT or MR (default CT)")
    parser.add_argument("--sample", type=int, default=8, help="series of a store to read whole (default 8; -1: all)")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings and return 0 for sane, 1 for not sane."""
    import json

    from fmct.inspection.inspect import inspect_path

    findings = inspect_path(arguments.path, modality=arguments.modality, sample=arguments.sample)
    if arguments.json:
        print(json.dumps(findings.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(findings.to_text())
    return 0 if findings.sane else 1

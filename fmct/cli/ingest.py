"""Read scans (DICOM folders, NIfTI, NRRD, MHA) into a store: native grid, resolution pyramid, checksums.

What is wrong with a scan is never guessed at: the scan is refused, with a code and the numbers, in STORE/ledger.jsonl.
The same command again continues after a kill and takes up new scans.

examples:
  fmct ingest scans/ STORE
  fmct ingest hospital_a/ hospital_b/ STORE tilt=resample spacing=resample workers=8
  fmct ingest scans/ STORE config=store/ct_pt 'patient_regex=(STS_\\d+)'
  fmct ingest scans/ STORE patients=patients.csv        # columns file, patient
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare SOURCE… STORE and overrides."""
    parser.add_argument("items", nargs="+", metavar="SOURCE… STORE [key=value…]", help="scans, then the store to make")


def run(arguments: argparse.Namespace) -> int:
    """Ingest and print what was taken and what was not."""
    from fmct.cli import split_overrides
    from fmct.config import build, read_tree
    from fmct.errors import ConfigError
    from fmct.store.ingest import IngestConfig, ingest
    from fmct.store.progress import reporter

    paths, overrides = split_overrides(arguments.items)
    configs = [item.partition("=")[2] for item in overrides if item.startswith("config=")]
    overrides = [item for item in overrides if not item.startswith("config=")]
    if len(paths) < 2:
        raise ConfigError("expected one or more sources and then the store: fmct ingest SOURCE… STORE [key=value…]")
    tree = read_tree(configs or ["store/ct"], overrides)
    config = build(IngestConfig, tree)
    print(ingest(paths[:-1], paths[-1], config=config, progress=reporter(config.report_every_s)))
    return 0

"""Predict series with a model folder: probabilities, decisions where a threshold was frozen, and masks.

SOURCE is a scan, a folder of scans, a DICOM folder or a store; each series is predicted by itself. OUT gets
predictions.csv (one row per series and target), components.csv, masks/ on each scan's own grid and orientation (NIfTI,
and DICOM-SEG for DICOM), ledger.jsonl with every failed scan and why, and sources.csv. Tables name patients as the
scans do unless --key turns them into a store's pseudonyms. The same command again goes on where it stopped. A folder of
models (one a seed, one a finding) gives OUT/NAME each, and `fmct evaluate OUT …` takes them together.
Exit code: 0, or 1 when a scan failed. Research use only, not a medical device.

examples:
  fmct predict models/nct_pe scans/ predictions/
  fmct predict models/head_ct STORE predictions/ --format parquet
  fmct predict models/nct_pe STORE predictions/ --only runs/nct_pe/cohort.csv --split test
  fmct predict models/nct_pe dicom/ predictions/ --attention --probabilities --patient-regex 'P[0-9]+'
"""

import argparse
import sys
from pathlib import Path

HELP = "predictions, and masks on the original grid"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("model", metavar="MODEL", help="model folder or hub id")
    parser.add_argument("source", metavar="SOURCE", help="scan, folder of scans, DICOM folder or store")
    parser.add_argument("output", metavar="OUT", help="folder for tables and masks")
    parser.add_argument("--format", choices=("csv", "parquet", "json"), default="csv", help="of the tables")
    parser.add_argument("--no-masks", action="store_true", help="tables only")
    parser.add_argument("--probabilities", action="store_true", help="also write voxel probabilities as NIfTI")
    parser.add_argument("--attention", action="store_true", help="also write attention maps as NIfTI")
    parser.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows (default 0.5)")
    parser.add_argument("--patients", default="", metavar="CSV", help="columns file and patient: whose a scan is")
    parser.add_argument("--patient-regex", default="", metavar="RE", help="finds the patient in a scan's path")
    parser.add_argument("--only", default="", metavar="CSV", help="series that this table names (RUN/cohort.csv)")
    parser.add_argument("--split", default="", help="of --only, the rows of this split alone")
    parser.add_argument("--key", type=Path, metavar="FILE", help="a store's key: tables then hold its pseudonyms")
    parser.add_argument("--read", action="append", default=[], metavar="KEY=VALUE", help="such as tilt=resample")
    parser.add_argument("--brain-masks", default="", metavar="DIR", help="of a lesion detector: where to look")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--device", help="such as cuda:1 or cpu; default a GPU if there is one")


def run(arguments: argparse.Namespace) -> int:
    """Predict, and say what failed."""
    from fmct.heap import tune_memory
    from fmct.inference.predict_models import predict_with
    from fmct.inference.predict_series import Wanted
    from fmct.inference.request import key_there, read_series_list, source_there
    from fmct.inference.series_source import Naming
    from fmct.lesions import commands as lesions
    from fmct.store.patients import PatientNames
    from fmct.store.progress import reporter

    a = arguments
    if lesions.is_lesion_model(Path(a.model)):
        return lesions.predict(a)
    source, key = source_there(a.source), key_there(a.key)
    wanted = Wanted(not a.no_masks, a.probabilities, a.attention, overlap=a.overlap, precision=a.precision)
    tune_memory()
    summaries = predict_with(
        a.model,
        source,
        a.output,
        revision=a.revision,
        device=a.device,
        read=a.read,
        table_format=a.format,
        wanted=wanted,
        naming=Naming(PatientNames(a.patients or None, a.patient_regex or None), key),
        only=read_series_list(a.only, a.split) if a.only else None,
        progress=lambda: reporter(10.0),
    )
    for summary in summaries:
        for line in summary.failures():
            print(line, file=sys.stderr)
        print(summary)
    return 1 if any(summary.failed for summary in summaries) else 0

"""Predict series with a model folder: probabilities, decisions where a threshold was frozen, and masks.

SOURCE is a scan, a folder of scans, a DICOM folder or a store; each series is predicted by itself. OUT gets
predictions.csv (one row per series and target), components.csv, masks/ on each scan's own grid and orientation (NIfTI,
and DICOM-SEG for DICOM), ledger.jsonl with every failed scan and why, and sources.csv. Tables name patients as the
scans do unless --key turns them into a store's pseudonyms. The same command again goes on where it stopped.
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
    parser.add_argument(
        "--only", default="", metavar="CSV", help="series that its column series names, such as RUN/cohort.csv"
    )
    parser.add_argument("--split", default="", help="of --only, the rows of this split alone")
    parser.add_argument("--key", type=Path, metavar="FILE", help="a store's key: tables then hold its pseudonyms")
    parser.add_argument("--read", action="append", default=[], metavar="KEY=VALUE", help="such as tilt=resample")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--device", help="such as cuda:1 or cpu; default a GPU if there is one")


def run(arguments: argparse.Namespace) -> int:
    """Predict, and say what failed."""
    from fmct.errors import DataError
    from fmct.heap import keep_freed_memory
    from fmct.inference.predict import predict
    from fmct.inference.predict_series import Wanted
    from fmct.inference.series_source import Naming, read_policy
    from fmct.publish.load_model import load_model
    from fmct.store.fingerprint import load_key
    from fmct.store.patients import PatientNames
    from fmct.store.progress import reporter

    if not Path(arguments.source).exists():
        raise DataError(f"{arguments.source}: no such file or folder. Expected a scan, a folder of scans, or a store.")
    if not 0 <= arguments.overlap < 1:
        raise DataError(f"--overlap {arguments.overlap}: expected a share of a window's side, 0 or more and below 1.")
    if arguments.key and not arguments.key.is_file():
        raise DataError(f"{arguments.key}: no such key file. Expected the one that lies beside a store.")
    keep_freed_memory()
    model = load_model(arguments.model, revision=arguments.revision, device=arguments.device)
    summary = predict(
        model,
        arguments.source,
        arguments.output,
        table_format=arguments.format,
        wanted=Wanted(
            masks=not arguments.no_masks,
            probabilities=arguments.probabilities,
            attention=arguments.attention,
            overlap=arguments.overlap,
            precision=arguments.precision,
        ),
        naming=Naming(
            PatientNames(arguments.patients or None, arguments.patient_regex or None),
            load_key(arguments.key, expected=None) if arguments.key else None,
        ),
        policy=read_policy(model.preprocessing.modality, arguments.read),
        only=_listed(arguments.only, arguments.split) if arguments.only else None,
        progress=reporter(10.0),
    )
    for patient, series, code, reason in summary.failed[:20]:
        print(f"failed: patient {patient}, series {series}: {code}: {reason}", file=sys.stderr)
    if len(summary.failed) > 20:
        print(f"… and {len(summary.failed) - 20} more, in {arguments.output}/ledger.jsonl", file=sys.stderr)
    print(summary)
    return 1 if summary.failed else 0


def _listed(table: str, split: str) -> set[str]:
    """Return the series that a table names, all or those of a split. Raises DataError when there are none."""
    from fmct.errors import DataError
    from fmct.table_files import read_rows

    rows = read_rows(table)
    if "series" not in rows[0] or (split and "split" not in rows[0]):
        raise DataError(f"{table}: expected a column series{' and a column split' if split else ''}.")
    found = {row["series"] for row in rows if not split or row["split"] == split}
    if not found:
        raise DataError(f"{table}: no row of the split {split!r}.")
    return found

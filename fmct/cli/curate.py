"""Turn a public data set's own labels into the table that fine-tuning reads, keyed by the store's pseudonyms.

examples:
  fmct ingest rsna/stage_2_train STORE
  fmct curate rsna-ich rsna/stage_2_train.csv rsna/stage_2_train STORE labels.csv
  fmct ingest CQ500 STORE
  fmct curate cq500 CQ500/reads.csv CQ500 STORE labels.csv --split train=train.csv --split test=test.csv

RSNA 2019 ICH: a series has a finding when one of its slices has. CQ500: the majority of three readers; every series of
a patient gets the patient's label. An empty cell is unknown. With --split, published split files become OUT_splits.csv.
"""

import argparse
from pathlib import Path

from fmct.errors import ConfigError

HELP = "a public data set's labels → the table that fine-tuning reads"
SETS = {"rsna-ich": "fmct.datasets.rsna_ich", "cq500": "fmct.datasets.cq500"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("set", choices=sorted(SETS), metavar="SET", help=f"which data set: {', '.join(sorted(SETS))}")
    parser.add_argument("labels", metavar="LABELS", help="stage_2_train.csv of RSNA, reads.csv of CQ500, as shipped")
    parser.add_argument("source", metavar="SOURCE", help="the folder that was ingested")
    parser.add_argument("store", metavar="STORE", help="the store that it became")
    parser.add_argument("out", metavar="OUT", help="table to write: .csv, .parquet or .jsonl")
    parser.add_argument("--key-file", default="", metavar="KEY", help="the store's key (default STORE.key)")
    parser.add_argument(
        "--split", action="append", default=[], metavar="NAME=CSV", help="a published split file, with img_path"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the tables and say what is in them."""
    from importlib import import_module

    from fmct.datasets.published_splits import published_splits, write_splits
    from fmct.datasets.stored_scans import stored_scans, write_label_table

    module = import_module(SETS[arguments.set])
    read = module.read_slice_labels if arguments.set == "rsna-ich" else module.read_reads
    tables = dict(_split_table(item) for item in arguments.split)
    labels = read(arguments.labels)
    scans = list(stored_scans(arguments.source, arguments.store, key_file=arguments.key_file))
    rows = module.label_scans(scans, labels)
    write_label_table(arguments.out, module.FINDINGS, [(scan.entry, values) for scan, values in rows])
    patients = len({scan.entry.patient for scan in scans})
    print(f"{arguments.out}: {len(rows)} series of {patients} patients.")
    for finding in module.FINDINGS:
        values = [row[finding] for _, row in rows]
        print(
            f"  {finding:<20} {values.count(1.0):>6} with, {values.count(0.0):>6} without, {values.count(None)} unknown"
        )
    if tables:
        splits = published_splits(tables, scans)
        path = Path(arguments.out).with_name(f"{Path(arguments.out).stem}_splits.csv")
        write_splits(path, splits)
        print(f"{path}: " + ", ".join(f"{n} {list(splits.values()).count(n)} patients" for n in tables) + ".")
    return 0


def _split_table(item: str) -> tuple[str, str]:
    name, separator, path = item.partition("=")
    if not separator or not name or not path:
        raise ConfigError(f"--split {item}: expected NAME=CSV, such as train=rsna_train_label.csv.")
    return name, path

"""Labels and headers made fit to use: a public data set's own labels as a table, or an audit of contrast headers.

examples:
  fmct curate rsna-ich rsna/stage_2_train.csv rsna/stage_2_train STORE labels.csv
  fmct curate cq500 CQ500/reads.csv CQ500 STORE labels.csv --split train=train.csv --split test=test.csv
  fmct curate luna16 LUNA16/CSVFILES LUNA16 STORE OUT --split test=subset9  (nodules: OUT is a folder, with masks)
  fmct curate contrast DICOM OUT                                (what do the headers say?)
  fmct curate contrast STORE OUT model=MODEL labels=labels.csv  (and are they right?)

SET LABELS SOURCE STORE OUT of a public set: RSNA 2019 ICH, a series has a finding when one of its slices has; CQ500,
the majority of three readers. The table is keyed by the store's pseudonyms; an empty cell is unknown. With --split,
published split files become OUT_splits.csv.
contrast SOURCE… OUT: folders of scans or stores into the folder OUT: table.csv with header, deciding attributes, model
probability, decision, disagreement and reason of every series, report.html and report.json. The same again goes on.
`fmct split STORE method=stratified by=OUT/table.csv:decision`, or data.stores[].table and .filter, use it.
"""

import argparse

from fmct.errors import ConfigError

HELP = "a public set's labels → a table for fine-tuning; contrast headers → an audit"
SETS = {"rsna-ich": "fmct.datasets.rsna_ich", "cq500": "fmct.datasets.cq500", "luna16": "fmct.datasets.luna16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "set", choices=[*sorted(SETS), "contrast"], metavar="SET", help="contrast, cq500, luna16, rsna-ich"
    )
    parser.add_argument("items", nargs="+", metavar="PATH [key=value…]", help="what SET takes, as above")
    parser.add_argument("--key-file", default="", metavar="KEY", help="the store's key (default STORE.key)")
    parser.add_argument(
        "--split", action="append", default=[], metavar="NAME=CSV", help="a published split file, or a subset of luna16"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write what SET makes, and say what is in it."""
    from fmct.cli import split_overrides

    paths, overrides = split_overrides(arguments.items)
    if arguments.set == "contrast":
        return _contrast(paths, overrides)
    if len(paths) != 4 or overrides:
        raise ConfigError(f"fmct curate {arguments.set} takes LABELS SOURCE STORE OUT, four paths; got {len(paths)}.")
    from fmct.datasets.curation import curate

    splits = dict(_split_table(item) for item in arguments.split)
    for line in curate(SETS[arguments.set], *paths, key_file=arguments.key_file, split_tables=splits):
        print(line)
    return 0


def _contrast(paths: list[str], overrides: list[str]) -> int:
    options = dict(item.split("=", 1) for item in overrides)
    unknown = sorted(set(options) - {"model", "labels"})
    if len(paths) < 2 or unknown:
        raise ConfigError(
            f"fmct curate contrast SOURCE… OUT [model=MODEL] [labels=CSV]: {unknown or paths} does not fit."
        )
    from fmct.contrast.audit import audit_contrast
    from fmct.contrast.audit_report import in_short, write_audit_report
    from fmct.contrast.gate import load_gate
    from fmct.store.progress import reporter

    model, labels = options.get("model", ""), options.get("labels", "")
    gate = load_gate(model) if model else None
    audit = audit_contrast(paths[:-1], paths[-1], gate=gate, model=model, labels=labels, progress=reporter(10.0))
    page = write_audit_report(audit)
    print(f"{in_short(audit)}\n{audit.folder / 'table.csv'}, {page}")
    return 0


def _split_table(item: str) -> tuple[str, str]:
    name, separator, path = item.partition("=")
    if not separator or not name or not path:
        raise ConfigError(f"--split {item}: expected NAME=CSV, such as train=rsna_train_label.csv.")
    return name, path

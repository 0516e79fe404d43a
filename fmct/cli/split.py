"""Give every patient of a store a split, written to STORE/splits.csv once; run again, new patients are appended.

examples:
  fmct split STORE
  fmct split STORE fractions.train=0.7 fractions.validation=0.1 fractions.test=0.2 seed=1
  fmct split STORE method=stratified by=spacing
  fmct split STORE method=stratified by=AUDIT/table.csv:decision      (of fmct curate contrast)
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare STORE and overrides."""
    parser.add_argument("items", nargs="+", metavar="STORE [key=value…]", help="the store, then the settings")


def run(arguments: argparse.Namespace) -> int:
    """Split and print how many patients and series each split has."""
    from collections import Counter

    from fmct.cli import split_overrides
    from fmct.config import build, read_tree
    from fmct.errors import ConfigError
    from fmct.store.reader import Store
    from fmct.store.splits import SPLITS, SplitConfig, read_splits, split

    paths, overrides = split_overrides(arguments.items)
    if len(paths) != 1:
        raise ConfigError("expected one store: fmct split STORE [key=value…]")
    config = build(SplitConfig, read_tree([], overrides))
    with Store.open(paths[0]) as store:
        before = read_splits(store.path)
        splits = split(store, fractions=config.fractions, method=config.method, seed=config.seed, by=config.by or None)
        series = Counter(splits[entry.patient] for entry in store.entries)
        present = {entry.patient for entry in store.entries}
        patients = Counter(place for patient, place in splits.items() if patient in present)
        for place in dict.fromkeys([*config.fractions, *splits.values()]):
            print(f"{place:<12} {patients[place]:>6} patients {series[place]:>6} series")
        print(f"{len(splits) - len(before)} new rows in {store.path / SPLITS}; {len(before)} were there before.")
    return 0

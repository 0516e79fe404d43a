"""Measure frozen features, beside random initialisation and intensity alone, on patients that pretraining did not see.

With --masks: a linear classifier on patch tokens, lesion or other soft tissue. With --labels: k-NN and linear probes
per series. With neither: how well two crops of a series tell their distance, which needs no labels.

examples:
  fmct probe encoders/demo STORE --masks masks/ --output probes/
  fmct probe encoders/demo STORE --labels labels.csv --target contrast --split test
  fmct probe my-lab/ct-vit-small STORE
"""

import argparse
from pathlib import Path

HELP = "frozen features beside random initialisation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("encoder", metavar="ENCODER", help="encoder folder or hub id")
    parser.add_argument("store", metavar="STORE")
    parser.add_argument(
        "--masks", metavar="DIR", help="NIfTI lesion masks, named by series id or laid out as the scans"
    )
    parser.add_argument("--mask-table", metavar="CSV", help="columns mask and id (or patient, or file): which is whose")
    parser.add_argument("--labels", metavar="CSV", help="columns id (or patient) and the target; empty is unknown")
    parser.add_argument("--target", metavar="NAME", help="the column of --labels to predict")
    parser.add_argument("--kind", choices=("auto", "binary", "classes", "continuous"), default="auto")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--patients", metavar="LIST", help="patients to score: a,b,c or a file with one a line")
    who.add_argument("--split", metavar="NAME", help="score the patients of this split of STORE/splits.csv")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="random initialisations beside it (default 3)"
    )
    parser.add_argument("--layers", metavar="LIST", help="blocks whose patch tokens are joined, such as 2,5 or -2,-1")
    parser.add_argument("--seed", type=int, default=0, help="of windows, pairs and folds")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap of --labels (default 1000)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="also write probe-NAME.json and .txt there")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--device", help="such as cuda:1 or cpu; default a GPU if there is one")


def run(arguments: argparse.Namespace) -> int:
    """Probe and print the tables."""
    from fmct.probes.probe import probe
    from fmct.probes.request import layers_of, patients_of
    from fmct.publish.load import load_encoder
    from fmct.store.reader import Store

    encoder = load_encoder(arguments.encoder, revision=arguments.revision, device=arguments.device)
    with Store.open(arguments.store) as store:
        reports = probe(
            encoder,
            store,
            masks=arguments.masks,
            mask_table=arguments.mask_table,
            labels=arguments.labels,
            target=arguments.target,
            kind=arguments.kind,
            test=patients_of(arguments.store, split=arguments.split, listed=arguments.patients),
            seeds=arguments.seeds,
            layers=layers_of(arguments.layers),
            output=arguments.output,
            resamples=arguments.resamples,
            seed=arguments.seed,
        )
    print("\n\n".join(map(str, reports)))
    return 0

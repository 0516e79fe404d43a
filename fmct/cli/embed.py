"""Features per series with a published encoder, preprocessing included.

OUT.npz holds ids, patients (pseudonyms), embedding (S, 2E) float32: the mean over tiles of [cls, mean patch].

example:
  fmct embed encoders/vit_small scans/ features.npz
  fmct embed my-lab/ct-vit-small STORE features.npz --tiles
"""

import argparse
from pathlib import Path

HELP = "features per series"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("encoder", metavar="ENCODER", help="encoder folder or hub id")
    parser.add_argument("source", metavar="SOURCE_OR_STORE", help="a scan, a folder of scans, or a store")
    parser.add_argument("output", metavar="OUT.npz")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--tiles", action="store_true", help="also keep the features of every tile")
    parser.add_argument("--key", type=Path, metavar="FILE", help="a store's pseudonym key, for the same patient names")
    parser.add_argument(
        "--sources", type=Path, metavar="CSV", help="also write id and path of every scan (it holds paths)"
    )
    parser.add_argument("--device", help="such as cuda:1 or cpu; default a GPU if there is one")


def run(arguments: argparse.Namespace) -> int:
    """Embed and say what was done."""
    import sys
    from collections import Counter

    from fmct.errors import DataError
    from fmct.inference.embed import embed, write_features, write_sources
    from fmct.inference.request import key_there, source_there
    from fmct.publish.load import load_encoder
    from fmct.store.progress import reporter

    source, key = source_there(arguments.source), key_there(arguments.key)
    if not arguments.output.endswith(".npz"):
        raise DataError(f"{arguments.output}: the output is one NPZ file; give a name that ends in .npz.")
    encoder = load_encoder(arguments.encoder, revision=arguments.revision, device=arguments.device)
    features = embed(encoder, source, key=key, progress=reporter(10.0, doing="embed"))
    write_features(arguments.output, features, encoder, tiles=arguments.tiles)
    if arguments.sources:
        write_sources(arguments.sources, features)
    for code, count in Counter(code for _, code, _ in features.refused).most_common():
        print(f"not taken: {count} × {code}", file=sys.stderr)
    series, width = features.matrix.shape
    print(f"{arguments.output}: {series} series of {len(set(features.patients))} patients, {width} features each.")
    return 0

"""Draw what training would see: source scans with the views' boxes, the rendered views, masks and intensities.

Takes the configuration files and overrides of `fmct pretrain`, and the same draws: draw 0 here is draw 0 there.

examples:
  fmct preview pretrain/demo store=STORE
  fmct preview my.yaml store=STORE output=views.png draws=4 start=1000
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare CONFIG… and overrides."""
    parser.add_argument(
        "items",
        nargs="+",
        metavar="CONFIG… [key=value…]",
        help="as for fmct pretrain; also output=FILE.png (preview.png), draws=N (3), start=DRAW (0)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the sheet and print where it is."""
    from fmct.cli import split_overrides
    from fmct.config import build, import_recipe, read_tree
    from fmct.data.sheet import PreviewConfig, write_sheet
    from fmct.errors import ConfigError

    paths, overrides = split_overrides(arguments.items)
    own = {name: text for name, _, text in (item.partition("=") for item in overrides) if name in PREVIEW_KEYS}
    overrides = [item for item in overrides if item.partition("=")[0] not in PREVIEW_KEYS]
    if not paths:
        raise ConfigError("expected a configuration: fmct preview CONFIG… store=STORE")
    settings = build(PreviewConfig, read_tree([], [f"{name}={text}" for name, text in own.items()]))
    tree = {**read_tree(paths, overrides), "output": settings.output}
    recipe = import_recipe(str(tree.get("recipe", "pretrain.dino")))
    config = build(recipe.Config, {**_UNUSED, **tree})
    print(write_sheet(config, settings))
    return 0


PREVIEW_KEYS = ("output", "draws", "start")
_UNUSED = {"steps": 1, "batch_size": 1}  # a preview needs no value for these, so none is asked for

"""The whole main job on embedded real CT, on a CPU: ingest, preview, pretrain, export, load, probe, report.

Twelve patients are held out of pretraining and of the probe's fit; the page at the end says what the frozen features
know about their tumours, beside random weights. The same command again goes on where it was stopped.

examples:
  fmct demo
  fmct demo --quick --output /tmp/demo      # a few steps, to see that all parts work
  fmct demo --output other seed=1           # further words change the pretraining, as in fmct pretrain
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of configs/pretrain/demo.yaml")
    parser.add_argument("--output", type=Path, default=Path("fmct-demo"), metavar="DIR", help="default: fmct-demo")
    parser.add_argument("--quick", action="store_true", help="a few steps instead of minutes; the numbers mean nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and name the page to open."""
    import importlib.util

    from fmct.cli import main, split_overrides
    from fmct.errors import ConfigError

    missing = [name for name in ("deepspeed",) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the demo needs {' and '.join(missing)}. Install everything: pip install 'fmct[all]'")
    paths, overrides = split_overrides(arguments.overrides)
    if paths:
        raise ConfigError(f"{paths[0]!r}: expected key=value, such as seed=1; the folder goes behind --output.")
    from fmct.demo.run import Options, run_demo

    options = Options(
        output=arguments.output,
        quick=arguments.quick,
        overrides=tuple(overrides),
        train=lambda words: main(["pretrain", *words]),
        preview=lambda words: main(["preview", *words]),
    )
    report = run_demo(options)
    print(f"\nDone. Open {report.resolve()}")
    return 0

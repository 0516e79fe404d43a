"""The whole main job on embedded real CT, on a CPU: ingest, preview, pretrain, export, load, probe, report.

Twelve patients are held out of pretraining and of the probe's fit; the page at the end says what the frozen features
know about their tumours, beside random weights. The same command again goes on where it was stopped.

examples:
  fmct demo
  fmct demo --quick --output /tmp/demo      # a few steps, to see that all parts work
  fmct demo --output other seed=1           # further words change the pretraining, as in fmct pretrain
  fmct demo --ablation --seeds 1,2,3 --minutes 5 --output ablation    # each objective alone, at equal minutes
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of configs/pretrain/demo.yaml")
    parser.add_argument("--output", type=Path, default=Path("fmct-demo"), metavar="DIR", help="default: fmct-demo")
    parser.add_argument("--ablation", action="store_true", help="the objectives alone and jointly, at equal minutes")
    parser.add_argument("--arms", metavar="LIST", help="with --ablation: some arms only, such as joint,DINO")
    parser.add_argument("--seeds", default="0", metavar="LIST", help="with --ablation: seeds of each arm (default 0)")
    parser.add_argument("--minutes", type=float, default=5.0, help="with --ablation: training time a cell (default 5)")
    parser.add_argument("--steps", type=int, default=0, help="with --ablation: updates a cell, in place of --minutes")
    parser.add_argument("--development", action="store_true", help="with --ablation: score the others, to tune on")
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
    if arguments.ablation:
        return _ablate(arguments, overrides)
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


def _ablate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from fmct.cli import main
    from fmct.demo.ablation import ARMS, AblationOptions, run_ablation
    from fmct.errors import ConfigError

    try:
        seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {arguments.seeds}: expected whole numbers such as 1,2,3.") from None
    options = AblationOptions(
        output=arguments.output,
        arms=tuple(arguments.arms.split(",")) if arguments.arms else tuple(ARMS),
        seeds=seeds,
        minutes=arguments.minutes,
        steps=arguments.steps,
        held_out=not arguments.development,
        overrides=tuple(overrides),
        train=lambda words: main(["pretrain", *words]),
    )
    print(run_ablation(options))
    return 0

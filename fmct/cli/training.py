"""What `fmct pretrain` and `fmct finetune` share: their arguments, their processes, and one rank of a run."""

import argparse
import logging
import os
import sys

from fmct.cli import split_overrides
from fmct.errors import ConfigError, TrainingStopped

ENTRY = (sys.executable, "-c", "import sys; from fmct.cli import main; sys.exit(main())")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a verb that trains."""
    parser.add_argument("items", nargs="+", metavar="CONFIG… key=value…", help="config files, then values that win")
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine, one per GPU (default 1)")
    parser.add_argument("--fresh", action="store_true", help="start anew; an earlier run is moved to OUTPUT.old-N")
    parser.add_argument("--allow-change", action="append", default=[], metavar="KEY", help="resume though KEY changed")
    parser.add_argument("--replay", default="", metavar="CAPTURE", help="run a captured non-finite update again")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=None, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace, *, verb: str, recipe: str = "", example: str) -> int:
    """Train, in this process or in `--nproc` copies of it.

    recipe: of a config that names none; empty when it has to. example: a config for the text of a mistake.
    """
    paths, overrides = split_overrides(arguments.items)
    if not paths:
        raise ConfigError(f"fmct {verb} needs a config file, such as {example}.")
    from fmct.train.launch import launched, spawn

    if arguments.nproc != 1 and not launched(os.environ):
        return spawn([*ENTRY, verb, *words(arguments)], nproc=arguments.nproc)
    return run_rank(paths, overrides, arguments, recipe=recipe)


def words(arguments: argparse.Namespace) -> list[str]:
    """Return the command line of one rank."""
    changes = [word for key in arguments.allow_change for word in ("--allow-change", key)]
    replay = ["--replay", arguments.replay] if arguments.replay else []
    return [*arguments.items, *(["--fresh"] if arguments.fresh else []), *changes, *replay]


def run_rank(paths: list[str], overrides: list[str], arguments: argparse.Namespace, *, recipe: str = "") -> int:
    """Be one rank of a run."""
    from fmct.train.launch import naming_failures, tie_to_parent

    tie_to_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from fmct import distributed
    from fmct.config import read_recipe
    from fmct.downstream.repeat import repeated
    from fmct.heap import tune_memory
    from fmct.train.session import Options

    try:
        module, config = read_recipe(paths, overrides, default=recipe)
    except ConfigError as error:
        if os.environ.get("RANK", "0") == "0":
            raise
        return error.exit_code  # rank 0 tells the user
    device = distributed.initialise(config.run.timeout_s)
    if device.type == "cpu":
        tune_memory()
    options = Options(fresh=arguments.fresh, allow_change=arguments.allow_change, replay=arguments.replay)
    if distributed.rank() != 0:
        logging.disable(logging.WARNING)
    try:
        with naming_failures():
            return max(module.main(part, options, device) for part in repeated(config))
    except TrainingStopped as stopped:
        if distributed.rank() == 0:
            raise
        return stopped.exit_code
    finally:
        distributed.finalise()

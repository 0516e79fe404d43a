"""The command line: one entry point, one file per verb. Nothing heavy is imported before a verb runs."""

import argparse
import sys
from importlib import import_module

from fmct import __version__
from fmct.cli.words import parsed, split_overrides
from fmct.errors import FmctError

__all__ = ["VERBS", "main", "split_overrides"]
VERBS = {
    "demo": "the whole main job on embedded real CT, on a CPU, in minutes",
    "ingest": "DICOM, NIfTI, NRRD, MHA → a checked store",
    "split": "patient-level splits of a store",
    "curate": "a public data set's labels → the table that fine-tuning reads",
    "inspect": "what is this scan, store, run or encoder, and is it sane",
    "preview": "a picture of the views that training would see",
    "pretrain": "train; the same command again resumes",
    "finetune": "a downstream task; the same command again resumes",
    "export": "run → publishable encoder or model folder",
    "convert": "another project's published weights → encoder folder",
    "publish": "encoder folder → a model hub",
    "predict": "predictions, and masks on the original grid",
    "embed": "features per series",
    "probe": "frozen features beside random initialisation",
    "evaluate": "report with patient-level intervals; models compared in pairs",
    "bench": "how fast is it here, beside its floor",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return its exit code: 0 done, 2 a mistake that the user can mend, 75 preempted (run again)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0].startswith("--local_rank"):
        arguments = arguments[1:]  # the deepspeed launcher puts it before the verb; LOCAL_RANK says the same
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"fmct {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        from difflib import get_close_matches

        close = get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean `fmct {close[0]}`?" if close else "`fmct --help` lists the verbs."
        print(f"fmct: no verb {verb!r}. {hint}", file=sys.stderr)
        return 2
    module = import_module(f"fmct.cli.{verb}")
    parser = argparse.ArgumentParser(
        prog=f"fmct {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    try:
        return module.run(parsed(parser, arguments[1:]))
    except FmctError as error:
        print(f"fmct {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print(f"fmct {verb}: interrupted.", file=sys.stderr)
        return 130


def _overview() -> str:
    rows = "\n".join(f"  {verb:<9} {text}" for verb, text in VERBS.items())
    return (
        "fmct: self-supervised 3D foundation models on CT. Not a medical device.\n\n"
        f"usage: fmct VERB …\n\n{rows}\n\n`fmct VERB --help` explains a verb, with an example. Start with: fmct demo"
    )

"""Judge predictions on labelled patients: one page with intervals, or two and more models compared in pairs.

PREDICTIONS is a table of `fmct predict`, or the folder that it wrote; NAME=PREDICTIONS names a model in the report.
LABELS has the columns patient, perhaps series, and one per target: 0, 1, or empty for unknown. OUT gets report.html,
results.json and patients.csv. Thresholds come frozen with the predictions, else from their validation rows (split =
val), never from the patients that are scored.

examples:
  fmct evaluate predictions/ labels.csv report/
  fmct evaluate dual=dual/ ct=ct_only/ labels.csv report/ --contrast dual,ct --by site --by sex
  fmct evaluate predictions/ labels.csv report/ --masks references/ --scans scans/ --tolerance 5
"""

import argparse
from pathlib import Path

HELP = "report with patient-level intervals"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("predictions", nargs="+", metavar="PREDICTIONS", help="one per model, or NAME=PREDICTIONS")
    parser.add_argument("labels", metavar="LABELS")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--split", default="", metavar="NAME", help="score this split (default test, else all others)")
    parser.add_argument("--by", action="append", default=[], metavar="COLUMN", help="subgroups by a column of LABELS")
    parser.add_argument(
        "--contrast", action="append", metavar="A,B", help="compare A with B (default: each with the first)"
    )
    parser.add_argument("--unit", choices=("patient", "series"), default="patient", help="what one case is")
    parser.add_argument("--merge", choices=("max", "mean"), default="max", help="series to patient (default max)")
    parser.add_argument("--proportions", choices=("wilson", "clopper-pearson"), default="wilson")
    parser.add_argument("--rule", choices=("sensitivity", "specificity", "youden"), default="sensitivity")
    parser.add_argument("--level", type=float, default=0.95, help="that the rule holds on validation (default 0.95)")
    parser.add_argument("--prevalence", type=float, action="append", help="for PPV, NPV (default 0.001, 0.01, 0.2)")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="reference masks, named by series")
    parser.add_argument(
        "--masks-predicted", type=Path, action="append", metavar="DIR", help="one per model (default: in its folder)"
    )
    parser.add_argument("--ignore", type=Path, metavar="DIR", help="masks of regions that count neither way")
    parser.add_argument("--tolerance", type=float, default=5.0, metavar="MM", help="of a lesion hit (default 5)")
    parser.add_argument(
        "--surface-tolerance", type=float, default=2.0, metavar="MM", help="of surface Dice (default 2)"
    )
    parser.add_argument("--candidates-from", type=float, default=0.5, metavar="P", help="voxel value (default 0.5)")
    parser.add_argument("--connectivity", type=int, choices=(6, 18, 26), default=26)
    parser.add_argument("--scans", metavar="DIR", help="store or folder of scans, for slices of the worst cases")
    parser.add_argument("--title", default="Evaluation")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and name the page."""
    from dataclasses import replace

    from fmct.errors import DataError
    from fmct.evaluate.classification import PREVALENCES, Settings
    from fmct.evaluate.evaluation import evaluate, read_model, with_masks
    from fmct.evaluate.evaluation_report import write_evaluation
    from fmct.evaluate.mask_folders import measure_models
    from fmct.evaluate.worst_cases import scans_of
    from fmct.inference.predictions import said_with
    from fmct.metrics.contrasts import Contrast
    from fmct.metrics.lesions import MatchingRule

    prevalences = tuple(arguments.prevalence or PREVALENCES)
    if not all(0 < share < 1 for share in prevalences) or arguments.resamples < 100:
        raise DataError("--prevalence: expected shares between 0 and 1; --resamples: at least 100.")
    settings = Settings(
        arguments.merge, arguments.proportions, arguments.rule, arguments.level, prevalences,
        arguments.resamples, arguments.seed, unit=arguments.unit,
    )  # fmt: skip
    given = [read_model(text) for text in arguments.predictions]
    contrasts = [Contrast.parse(text) for text in arguments.contrast] if arguments.contrast else None
    scans = scans_of(arguments.scans) if arguments.scans else None
    evaluation = evaluate(
        [model for model, _ in given], arguments.labels, settings=settings, split=arguments.split, by=arguments.by,
        contrasts=contrasts,
    )  # fmt: skip
    said = [f"{model.name}: {note}" for model, folder in given for note in said_with(folder)]
    evaluation = replace(evaluation, notes=[*said, *evaluation.notes])
    if arguments.masks:
        rule = MatchingRule(arguments.candidates_from, arguments.tolerance, arguments.connectivity)
        results = measure_models(
            evaluation, given, arguments.masks, arguments.masks_predicted, ignore=arguments.ignore, rule=rule,
            tolerance_mm=arguments.surface_tolerance,
        )  # fmt: skip
        evaluation = with_masks(evaluation, results)
    page = write_evaluation(evaluation, arguments.output, title=arguments.title, scans=scans)
    for name, found in evaluation.findings.items():
        for target, finding in found.items():
            print(f"{name}, {target}: AUROC {finding.metrics['AUROC']}, AUPRC {finding.metrics['AUPRC']}")
    print(f"report: {page}")
    return 0

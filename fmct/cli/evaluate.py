"""Judge predictions on labelled patients: one page with intervals, or two and more models compared in pairs.

PREDICTIONS is a table of `fmct predict`, the folder that it wrote, or a folder of such folders, one a seed: a patient
is then averaged over seeds before anything is counted. NAME=PREDICTIONS names a model in the report. A folder that
brings the predictions of a baseline (predictions_hu.csv) is compared with it; name its table to have it alone.
LABELS has the columns patient, perhaps series, and one per target: 0, 1, or empty for unknown. OUT gets report.html,
results.json and patients.csv. Thresholds come frozen with the predictions, else from their validation rows (split =
val), never from the patients that are scored.

examples:
  fmct evaluate predictions/ labels.csv report/
  fmct evaluate dual=dual/ ct=ct_only/ labels.csv report/ --contrast dual,ct --by site --by sex
  fmct evaluate microbleeds/ masks/ report/            of a lesion detector, beside reference masks
  fmct evaluate nodules/ labels.csv report/ --masks masks/ --ignore doubtful/     labels say who has none
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
    parser.add_argument("--contrast", action="append", metavar="A,B", help="A with B (default: each with the first)")
    parser.add_argument("--unit", choices=("patient", "series"), default="patient", help="what one case is")
    parser.add_argument("--merge", choices=("max", "mean"), default="max", help="series to patient (default max)")
    parser.add_argument("--proportions", choices=("wilson", "clopper-pearson"), default="wilson")
    parser.add_argument("--rule", choices=("sensitivity", "specificity", "youden"), default="sensitivity")
    parser.add_argument("--level", type=float, default=0.95, help="that the rule holds on validation (default 0.95)")
    parser.add_argument("--prevalence", type=float, action="append", help="for PPV, NPV (default 0.001, 0.01, 0.2)")
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="reference masks: SERIES, SERIES_TARGET, SERIES/TARGET"
    )
    parser.add_argument("--mask-target", action="append", metavar="NAME", help="of several targets (default all drawn)")
    parser.add_argument("--masks-predicted", type=Path, action="append", metavar="DIR", help="one per model")
    parser.add_argument("--ignore", type=Path, metavar="DIR", help="masks of regions that count neither way")
    parser.add_argument("--tolerance", type=float, metavar="MM", help="of a hit (default 5; lesion detector: its own)")
    parser.add_argument("--surface-tolerance", type=float, default=2.0, metavar="MM", help="of Dice (default 2)")
    parser.add_argument("--candidates-from", type=float, default=0.5, metavar="P", help="voxel value (default 0.5)")
    parser.add_argument("--connectivity", type=int, choices=(6, 18, 26), help="of a lesion (default 26)")
    parser.add_argument("--scans", metavar="DIR", help="store or folder of scans, for slices of the worst cases")
    parser.add_argument("--title", default="Evaluation")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and name the page."""
    from fmct.contrast.run_tables import with_baseline
    from fmct.evaluate.classification import PREVALENCES, Settings
    from fmct.evaluate.mask_folders import MaskSettings
    from fmct.evaluate.run_evaluation import run_evaluation
    from fmct.lesions import commands as lesions
    from fmct.metrics.lesions import MatchingRule

    a = arguments
    if lesions.is_lesion_prediction(Path(a.predictions[0])):
        return lesions.evaluate(a)
    prevalences = tuple(a.prevalence or PREVALENCES)
    settings = Settings(a.merge, a.proportions, a.rule, a.level, prevalences, a.resamples, a.seed, unit=a.unit)
    masks = None
    if a.masks:
        rule = MatchingRule(a.candidates_from, 5.0 if a.tolerance is None else a.tolerance, a.connectivity or 26)
        masks = MaskSettings(a.masks, a.masks_predicted or (), a.ignore, a.mask_target or (), rule, a.surface_tolerance)
    page, evaluation = run_evaluation(
        with_baseline(a.predictions), a.labels, a.output, settings=settings, split=a.split, by=a.by,
        contrasts=a.contrast, masks=masks, scans=a.scans, title=a.title,
    )  # fmt: skip
    for name, found in evaluation.findings.items():
        for target, finding in found.items():
            print(f"{name}, {target}: AUROC {finding.metrics['AUROC']}, AUPRC {finding.metrics['AUPRC']}")
    print(f"report: {page}")
    return 0

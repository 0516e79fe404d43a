"""What `fmct export`, `predict` and `evaluate` do where a run, a model or predictions are a lesion detector's."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from fmct.errors import ConfigError, DataError
from fmct.inference.request import key_there, read_series_list, source_there
from fmct.inference.series_source import Naming, read_policy
from fmct.lesions.judgement import is_lesion_prediction, judge_predictions, rule_recorded
from fmct.lesions.model_folder import (
    check_options,
    export_detector,
    is_lesion_model,
    is_lesion_run,
    load_detector,
    selftest,
)
from fmct.lesions.predict import predict_lesions
from fmct.store.patients import PatientNames
from fmct.store.progress import reporter

__all__ = ["evaluate", "export", "is_lesion_model", "is_lesion_prediction", "is_lesion_run", "predict"]


def export(arguments: argparse.Namespace) -> int:
    """Export a detector's run, and say what was written."""
    check_options(step=arguments.step, with_heads=arguments.with_heads, student=arguments.student)
    folder = export_detector(
        arguments.run, arguments.encoder, license_id=arguments.license, overwrite=arguments.overwrite
    )
    model = load_detector(folder, device="cpu")
    selftest(model, folder)
    print(
        f"{folder}: detector of {model.record.target}, {model.record.lesion_sign} in {model.record.prepare.modality}; "
        f"self-test passed.\nNext: fmct predict {folder} SCANS OUT, then fmct evaluate OUT REFERENCE_MASKS REPORT"
    )
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Predict with a detector, and say what failed."""
    a = arguments
    model = load_detector(a.model, device=a.device)
    summary = predict_lesions(
        model,
        source_there(a.source),
        a.output,
        brain_masks=a.brain_masks or None,
        naming=Naming(PatientNames(a.patients or None, a.patient_regex or None), key_there(a.key)),
        policy=read_policy(model.record.prepare.modality, a.read),
        only=read_series_list(a.only, a.split) if a.only else None,
        progress=reporter(10.0),
    )
    for patient, series, code, reason in summary.failed[:20]:
        print(f"failed: patient {patient}, series {series}: {code}: {reason}", file=sys.stderr)
    print(summary)
    return 1 if summary.failed else 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Judge a detector's predictions by the rule that it brings, and name the page.

    LABELS is the folder of reference masks, or a table with --masks naming that folder.
    """
    a = arguments
    if len(a.predictions) > 1:
        raise ConfigError("predictions of lesion detectors are judged one folder at a time.")
    table = None if Path(a.labels).is_dir() else a.labels
    if table and not a.masks:
        raise DataError(
            f"{a.labels}: expected a folder of reference masks beside a lesion detector's predictions, or a table of "
            "labels and --masks DIR."
        )
    rule = rule_recorded(Path(a.predictions[0]))
    tolerance = rule.tolerance_mm if a.tolerance is None else a.tolerance
    config = replace(
        rule, split=a.split, tolerance_mm=tolerance, connectivity=a.connectivity or rule.connectivity,
        resamples=a.resamples,
    )  # fmt: skip
    text = judge_predictions(
        a.predictions[0], a.masks or a.labels, a.output, config=config, title=a.title, seed=a.seed, labels=table,
        ignore=a.ignore,
    )  # fmt: skip
    print(text)
    print(f"report: {Path(a.output) / 'report.html'}")
    return 0

"""One or more models on labelled patients: everything that `fmct evaluate` reports, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fmct.errors import DataError
from fmct.evaluate.abstention import Bands, bands_of
from fmct.evaluate.classification import Finding, Settings, brier_of, macro, measure
from fmct.evaluate.model_contrasts import Comparison, compare_models
from fmct.evaluate.patient_scores import Scores, Truth, read_truth, score_units
from fmct.evaluate.segmentation import SegmentationResult
from fmct.evaluate.subgroups import Subgroup, subgroups
from fmct.inference.predictions import Prediction, merged, predictions_in, read_predictions
from fmct.metrics.calibration import apply_temperature, expected_calibration_error, fit_temperature
from fmct.metrics.contrasts import Contrast, ContrastResult, compare_arms
from fmct.metrics.intervals import Interval
from fmct.metrics.operating_point import OperatingPoint, choose

VALIDATION, TRAINING = {"val", "valid", "validation"}, {"train", "training"}


@dataclass(frozen=True)
class Model:
    """One model's predictions, under the name that the report calls it. bands: where it abstains."""

    name: str
    predictions: Sequence[Prediction]
    bands: Bands = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """All results. findings, by_series: {model: {target: Finding}}; macro: {model: {metric: mean over findings}}.

    by_series holds what counts each series by itself, where patients have several. contrasts: as listed. segmentation:
    {model: masks}; mask_contrasts: {metric: paired results}.
    """

    settings: Settings
    split: str
    findings: Mapping[str, Mapping[str, Finding]]
    macro: Mapping[str, Mapping[str, Interval]]
    by_series: Mapping[str, Mapping[str, Finding]]
    subgroups: Sequence[Subgroup]
    contrasts: Sequence[Contrast]
    comparisons: Sequence[Comparison]
    truth: Truth
    segmentation: Mapping[str, SegmentationResult] = field(default_factory=dict)
    mask_contrasts: Mapping[str, Sequence[ContrastResult]] = field(default_factory=dict)
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def models(self) -> list[str]:
        """The names, in the order given."""
        return list(self.findings)

    @property
    def targets(self) -> list[str]:
        """Every target that a model predicts, in order of name."""
        return sorted({target for findings in self.findings.values() for target in findings})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as results.json holds them."""
        return {
            "split": self.split,
            "settings": {**vars(self.settings), "prevalences": list(self.settings.prevalences)},
            "findings": [f.to_dict() for findings in self.findings.values() for f in findings.values()],
            "macro": {m: {k: i.to_dict() for k, i in metrics.items()} for m, metrics in self.macro.items()},
            "by_series": [f.to_dict() for findings in self.by_series.values() for f in findings.values()],
            "subgroups": [group.to_dict() for group in self.subgroups],
            "contrasts": [str(contrast) for contrast in self.contrasts],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "segmentation": {model: result.to_dict() for model, result in self.segmentation.items()},
            "mask_contrasts": {m: [r.to_dict() for r in results] for m, results in self.mask_contrasts.items()},
            "notes": list(self.notes),
        }


def read_model(text: str) -> tuple[Model, Path]:
    """Return the model of `PATH` or `NAME=PATH`, and the folder that its tables lie in.

    PATH is a table of predictions, a folder with one as `fmct predict` writes it, or a folder of such folders: one a
    seed, whose rows then carry the folder's name as seed, or one a finding. Raises DataError when absent.
    """
    name, found, rest = text.partition("=")
    path = Path(rest if found and not Path(text).exists() else text)
    tables = predictions_in(path) if path.is_dir() else [path]
    if not tables:
        raise DataError(f"{path}: no predictions.csv, .parquet or .jsonl in this folder. Run fmct predict first.")
    if not tables[0].is_file():
        raise DataError(f"{tables[0]}: no such table of predictions.")
    folder = path if path.is_dir() else path.parent
    if not found or path == Path(text):
        name = tables[0].stem if tables[0].stem != "predictions" else folder.resolve().name
    if len(tables) == 1:
        rows = read_predictions(tables[0])
        return Model(name, rows, bands_of(tables[0], rows)), tables[0].parent
    by_table = [read_predictions(table) for table in tables]
    rows = merged({table.parent.name: own for table, own in zip(tables, by_table, strict=True)})
    bands, left = {}, iter(rows)
    for table, own in zip(tables, by_table, strict=True):
        bands |= bands_of(table, list(islice(left, len(own))))
    return Model(name, rows, bands), folder


def evaluate(
    models: Sequence[Model],
    labels: str | Path,
    *,
    settings: Settings | None = None,
    split: str = "",
    by: Sequence[str] = (),
    contrasts: Sequence[Contrast] | None = None,
) -> Evaluation:
    """Return the results of one or more models on the patients of a table of labels.

    split: which rows are scored, where the predictions say so: by default test, else all but training and validation.
    Validation rows choose the operating point where no threshold was frozen, and the temperature; they are never
    scored. by: columns of the labels whose values are reported apart. contrasts: listed beforehand; by default every
    model against the first. Raises DataError when nothing can be scored.
    """
    settings = settings or Settings()
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise DataError(f"models: two are called {', '.join(names)}; name them, such as dual=PATH.")
    targets = sorted({p.target for model in models for p in model.predictions})
    truth = read_truth(labels, targets)
    findings: dict[str, dict[str, Finding]] = {}
    by_series: dict[str, dict[str, Finding]] = {}
    chosen_split = split or _split(models)
    for model in models:
        scored, validation = _rows(model, chosen_split)
        findings[model.name], by_series[model.name] = _findings(model, scored, validation, truth, settings)
    if not any(findings.values()):
        raise DataError(
            f"{labels}: no predicted patient has a known label. Predictions name patients such as "
            f"{models[0].predictions[0].patient}, the labels such as {min(truth.patients)}; the names have to agree."
        )
    pairs = list(contrasts) if contrasts is not None else [Contrast(name, names[0]) for name in names[1:]]
    for contrast in pairs:
        for name in (contrast.first, contrast.second):
            if name not in findings:
                raise DataError(f"contrast {contrast}: no model is called {name!r}; there are {', '.join(names)}.")
    return Evaluation(
        settings,
        chosen_split,
        findings,
        {name: macro(list(found.values()), settings) for name, found in findings.items() if len(found) > 1},
        {name: found for name, found in by_series.items() if found},
        subgroups(findings, truth, by, settings),
        pairs,
        compare_models(findings, pairs, settings),
        truth,
        notes=_notes(findings),
    )


def of_target(model: str, target: str) -> str:
    """Return what one of a model's several masks is called beside the others."""
    return f"{model}, {target}" if target else model


def with_masks(evaluation: Evaluation, results: Mapping[str, SegmentationResult]) -> Evaluation:
    """Return the evaluation with the models' masks, and the contrasts of their Dice by patient, target by target."""
    every = [
        Contrast(of_target(c.first, target), of_target(c.second, target))
        for c in evaluation.contrasts
        for target in ("", *evaluation.targets)
    ]
    listed = [c for c in every if c.first in results and c.second in results]
    settings = evaluation.settings
    compared = {
        metric: compare_arms(
            {model: result.values[metric] for model, result in results.items()},
            listed,
            seed=settings.seed,
            resamples=settings.resamples,
        )
        for metric in (("Dice", "surface Dice") if listed else ())
    }
    return replace(evaluation, segmentation=dict(results), mask_contrasts=compared)


def patient_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one row per model, target and patient, as patients.csv holds them."""
    rows = []
    for model, findings in evaluation.findings.items():
        for target, finding in findings.items():
            s = finding.scores
            for k, patient in enumerate(s.patients):
                p, decision = float(s.probabilities[k]), float(s.decisions[k])
                rows.append(
                    {
                        "model": model,
                        "target": target,
                        "patient": patient,
                        **({"series": s.series[k]} if s.unit == "series" else {}),
                        "label": int(s.labels[k]),
                        "probability": p,
                        "decision": None if np.isnan(decision) else int(decision),
                        **({"call": _call(s, k)} if s.bands is not None else {}),
                        "failed": int(np.isnan(p)),
                    }
                )
    for model, result in evaluation.segmentation.items():
        for patient in sorted({s.patient for s in result.series}):
            row: dict[str, Any] = {"model": model, "target": "masks", "patient": patient}
            row |= {name: values.get(patient) for name, values in result.values.items()}
            rows.append(row)
    return rows


def _call(scores: Scores, row: int) -> str:
    """Return `yes`, `no` or `uncertain` as the model would; "" of a failed scan."""
    if scores.failed[row]:
        return ""
    return "uncertain" if scores.uncertain[row] else "yes" if scores.decisions[row] else "no"


def _absent(model: Model, truth: Truth, target: str) -> int:
    """Return how many patients with a known label the model predicts in no split."""
    known = {patient for patient in truth.patients if truth.of_patient(target, patient) is not None}
    return len(known - {p.patient for p in model.predictions if p.target == target})


def _findings(
    model: Model, scored: Sequence[Prediction], validation: Sequence[Prediction], truth: Truth, settings: Settings
) -> tuple[dict[str, Finding], dict[str, Finding]]:
    """Return ({target: per patient}, {target: per series, where a patient has several})."""
    patients: dict[str, Finding] = {}
    series: dict[str, Finding] = {}
    for target in sorted({p.target for p in scored}):
        scores = score_units(scored, truth, target, unit=settings.unit, merge=settings.merge, bands=model.bands)
        scores = replace(scores, flow={**scores.flow, "labelled, not predicted": _absent(model, truth, target)})
        if not len(scores.labels):
            continue
        held_out = score_units(validation, truth, target, unit=settings.unit, merge=settings.merge)
        held_out = held_out.only(~held_out.failed)
        both = len(set(held_out.labels.tolist())) == 2
        point = None
        if not scores.decided and both:
            point = choose(held_out.probabilities, held_out.labels, settings.rule, settings.level)
            scores = scores.with_decisions(point.decide(scores.probabilities), (point.threshold,))
        finding = measure(model.name, scores, settings, point)
        calibrated = _calibrated(held_out, scores, settings) if both else {}
        patients[target] = replace(finding, calibrated=calibrated)
        if settings.unit == "patient" and scores.flow["series"] > len(scores.labels):
            each = _series_level(model, scored, truth, scores, point, settings)
            series[target] = measure(model.name, each, settings, point)
    return patients, series


def _series_level(
    model: Model,
    scored: Sequence[Prediction],
    truth: Truth,
    merged: Scores,
    point: OperatingPoint | None,
    settings: Settings,
) -> Scores:
    scores = score_units(scored, truth, merged.target, unit="series", merge=settings.merge, bands=model.bands)
    return scores.with_decisions(point.decide(scores.probabilities), merged.thresholds) if point else scores


def _calibrated(held_out: Scores, scores: Scores, settings: Settings) -> dict[str, float]:
    """Return the temperature that validation patients choose, and ECE and Brier score with it."""
    temperature = fit_temperature(held_out.probabilities, held_out.labels)
    kept = scores.only(~scores.failed)
    if not len(kept.labels):
        return {"temperature": temperature}
    warm = replace(kept, probabilities=apply_temperature(kept.probabilities, temperature))
    return {
        "temperature": temperature,
        "ECE": expected_calibration_error(warm.probabilities, warm.labels, bins=settings.bins),
        "Brier score": float(brier_of(warm).mean()),
    }


def _split(models: Sequence[Model]) -> str:
    """Return the split that is scored: test where there is one, "" for all rows but training and validation."""
    return "test" if any(p.split.lower() == "test" for model in models for p in model.predictions) else ""


def _rows(model: Model, split: str) -> tuple[list[Prediction], list[Prediction]]:
    held_out = [p for p in model.predictions if p.split.lower() in VALIDATION]
    if split:
        scored = [p for p in model.predictions if p.split.lower() == split.lower()]
        if split.lower() in VALIDATION:
            held_out = []  # what chose a threshold cannot judge it
    else:
        scored = [p for p in model.predictions if p.split.lower() not in VALIDATION | TRAINING]
    if not scored:
        found = ", ".join(sorted({p.split or "(empty)" for p in model.predictions}))
        raise DataError(f"{model.name}: no prediction of the split {split or 'to score'}; its splits are {found}.")
    shared = {p.patient for p in scored} & {p.patient for p in held_out}
    if shared:
        raise DataError(
            f"{model.name}: {len(shared)} patients are in validation and in what is scored "
            f"({', '.join(sorted(shared)[:6])}); a threshold would be judged on the patients that chose it."
        )
    return scored, held_out


def _notes(findings: Mapping[str, Mapping[str, Finding]]) -> list[str]:
    notes = []
    for model, found in findings.items():
        failed = max((int(f.scores.failed.sum()) for f in found.values()), default=0)
        if failed:
            notes.append(
                f"{model}: every scan of {_patients(failed)} failed. That counts as a wrong decision; ranks and "
                "calibration leave it out."
            )
        missing = max((f.scores.flow["labelled, not predicted"] for f in found.values()), default=0)
        if missing:
            notes.append(f"{model}: {_patients(missing)} labelled but in no split of the predictions: not counted.")
    return notes


def _patients(number: int) -> str:
    return f"{number} patient{'s' if number != 1 else ''}"

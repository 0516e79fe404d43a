"""Predictions for the validation split, as `fmct predict` makes them, and the operating point that they choose.

The threshold, and the probability from which a voxel belongs to a mask, are chosen here, on validation patients, and
frozen in RUN/decision.json. No test series is read.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fmct.artefacts import write_json
from fmct.data.cohort import Cohort
from fmct.data.mask_bank import MASK_SCALE
from fmct.data.sample import Sample
from fmct.downstream.config import ValidationConfig
from fmct.errors import DataError
from fmct.inference.components import components, counted_volume
from fmct.inference.decision import Evidence, calibrated, fit_fusion, rule_score
from fmct.inference.embed import scan_of_entry
from fmct.inference.native_grid import to_scan
from fmct.inference.predictions import Prediction, write_predictions
from fmct.inference.series_readers import reader_of
from fmct.inference.sliding_window import predict_series
from fmct.metrics import operating_point
from fmct.metrics.calibration import expected_calibration_error, temperature_of
from fmct.metrics.operating_point import band_around
from fmct.precision import compute_dtype
from fmct.publish.decision import Decision, write_decision
from fmct.publish.load_model import PublishedModel
from fmct.publish.task_record import TaskRecord
from fmct.tasks.kinds import kind_named

log = logging.getLogger(__name__)
FORMAT = ("fmct-validation", "1.0")
PREDICTIONS, REPORT = "predictions.csv", "validation.json"
MASK_THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(1, 10))


@dataclass(frozen=True)
class Examined:
    """What a model says of one validation series.

    logits: one per target, NaN without a classifier. peak: the largest voxel probability per target. volumes: (T, K)
    mm³ of counted components at each of MASK_THRESHOLDS. dice: (K,) of the mask target, None without a lesion there.
    """

    sample: Sample
    logits: np.ndarray
    peak: np.ndarray
    volumes: np.ndarray
    dice: np.ndarray | None
    error: str = ""

    def evidence(self, target: int, threshold: int) -> Evidence:
        """Return the evidence on a target at a mask threshold."""
        return Evidence(float(self.logits[target]), float(self.volumes[target, threshold]), float(self.peak[target]))


def predictor_of(task: nn.Module, record: TaskRecord, device: torch.device) -> PublishedModel:
    """Return what would be exported of a task as it stands: a copy, which shares nothing with training."""
    parameters = {name: tensor.detach().cpu().clone() for name, tensor in task.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        module, architecture = kind_named(record.kind, "the run").trained_predictor(
            record.architecture, parameters, in_channels=record.in_channels, spacing_mm=record.spacing_mm
        )
    return PublishedModel(module.to(device), record.with_architecture(architecture))


def validate(model: PublishedModel, cohort: Cohort, config: ValidationConfig, run: Path, *, step: int) -> Decision:
    """Predict the validation split, choose and write RUN/decision.json, and return the decision.

    The predictions and what was found lie under RUN/validation/step-NNNNNN. Where the patients cannot choose a
    threshold (one class only, no patient), the decision has none and says why: predictions are then probabilities only.
    Raises DataError when the split has no series.
    """
    precision = "bf16" if compute_dtype("auto", model.device) == torch.bfloat16 else "fp32"
    examined = [_examine(model, cohort, sample, config, precision) for sample in cohort.of(config.split)]
    threshold = _mask_threshold(examined)
    decision = _decide(model.targets, examined, threshold, config, step)
    folder = run / "validation" / f"step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / PREDICTIONS, _rows(model.targets, examined, threshold, decision, config))
    write_json(folder / REPORT, *FORMAT, {"step": step, "decision": decision.to_dict()})
    write_decision(run, decision)
    return decision


def _examine(
    model: PublishedModel, cohort: Cohort, sample: Sample, config: ValidationConfig, precision: str
) -> Examined:
    targets, nothing = len(model.targets), math.nan
    empty = (np.full(targets, nothing), np.full(targets, nothing), np.full((targets, len(MASK_THRESHOLDS)), nothing))
    try:
        scan = scan_of_entry(model.preprocessing, cohort.store, sample.entry)
        reader = reader_of(model.record.kind)
        if reader is not None:
            logits = reader.read_series(model, scan, precision=precision).logits
            return Examined(sample, logits.numpy().astype(np.float64), empty[1], empty[2], dice=None)
        output = predict_series(model, scan, precision=precision)
    except DataError as error:
        return Examined(sample, *empty, dice=None, error=str(error))
    logits = empty[0] if output.logits is None else output.logits.numpy().astype(np.float64)
    if output.probability is None:
        return Examined(sample, logits, empty[1], empty[2], dice=None)
    maps = to_scan(output.probability, output.grid, scan.shape)
    affine = np.array(sample.entry.affine)
    volumes = np.array([[_volume(part, affine, level, config) for level in MASK_THRESHOLDS] for part in maps])
    number = 0 if targets == 1 else cohort.mask_target or 0
    return Examined(sample, logits, maps.max(axis=(1, 2, 3)), volumes, dice=_dice(maps[number], cohort, sample))


def _volume(probability: np.ndarray, affine: np.ndarray, threshold: float, config: ValidationConfig) -> float:
    found = components(probability, affine, threshold=threshold)
    least = threshold if config.component_probability is None else config.component_probability
    return counted_volume(found, probability=least, min_volume_mm3=config.min_volume_mm3)


def _dice(probability: np.ndarray, cohort: Cohort, sample: Sample) -> np.ndarray | None:
    """Return Dice at each threshold, None for a series without a lesion: Dice says nothing of those."""
    if sample.mask is None:
        return None
    share = cohort.masks.read(sample.entry, sample.mask, 0, (0, 0, 0), sample.entry.shape) / MASK_SCALE
    truth = share >= 0.5
    sizes = [int((probability >= level).sum()) for level in MASK_THRESHOLDS]
    shared = [int((truth & (probability >= level)).sum()) for level in MASK_THRESHOLDS]
    return np.array([2 * s / max(n + truth.sum(), 1) for s, n in zip(shared, sizes, strict=True)])


def _mask_threshold(examined: Sequence[Examined]) -> int:
    """Return which of MASK_THRESHOLDS has the highest mean Dice over patients; that of ½ where no one has a lesion."""
    by_patient: dict[str, list[np.ndarray]] = {}
    for one in examined:
        if one.dice is not None:
            by_patient.setdefault(one.sample.patient, []).append(one.dice)
    if not by_patient:
        return MASK_THRESHOLDS.index(0.5)
    mean = np.mean([np.mean(values, axis=0) for values in by_patient.values()], axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-9)
    return int(min(best, key=lambda index: abs(MASK_THRESHOLDS[index] - 0.5)))


def _decide(
    targets: Sequence[str], examined: Sequence[Examined], threshold: int, config: ValidationConfig, step: int
) -> Decision:
    facts: dict[str, Any] = {"split": config.split, "step": step, "criterion": config.rule, "level": config.level}
    facts |= _segmentation_facts(examined, threshold)
    mask = MASK_THRESHOLDS[threshold]
    decision = Decision(
        rule=config.decision,
        mask_probability=mask,
        component_probability=mask if config.component_probability is None else config.component_probability,
        min_volume_mm3=config.min_volume_mm3,
    )
    for number, target in enumerate(targets):
        if config.targets and target not in config.targets:
            continue
        evidence = _of_units(examined, number, threshold, config.unit)
        labels = _labels(examined, number, config.unit)
        known = [unit for unit in evidence if unit in labels]
        try:
            if config.decision == "fusion":
                fitted = fit_fusion([evidence[p] for p in known], [labels[p] for p in known])
                decision = replace(decision, fusion={**decision.fusion, target: fitted})
            if config.calibrate:
                warm = temperature_of(
                    np.array([evidence[p].probability for p in known]), np.array([labels[p] for p in known])
                )
                decision = replace(decision, temperature={**decision.temperature, target: warm})
            warmed = [calibrated(decision, target, evidence[p]) for p in known]
            scores = np.array([rule_score(decision, target, each) for each in warmed])
            point = operating_point.choose(scores, np.array([labels[p] for p in known]), config.rule, config.level)
            point = operating_point.midway(point, scores) if config.midway else point
        except DataError as error:
            facts[target] = {"threshold": None, "reason": str(error)}
            log.warning("validation: %s: no threshold is frozen: %s", target, error)
            continue
        bands = {**decision.abstain, target: band_around(config.abstain, point.threshold)} if config.abstain else {}
        thresholds = {**decision.thresholds, target: point.threshold}
        decision = replace(decision, thresholds=thresholds, abstain=bands)
        facts[target] = point.to_dict() | _calibration_facts(scores, [labels[p] for p in known], config)
        log.info("validation: %s: positive %s", target, point)
    return replace(decision, validation=facts)


def _segmentation_facts(examined: Sequence[Examined], threshold: int) -> dict[str, Any]:
    dice = [float(one.dice[threshold]) for one in examined if one.dice is not None]
    failed = [one.sample.entry.id for one in examined if one.error]
    facts: dict[str, Any] = {"series": len(examined), "failed": failed}
    if dice:
        facts |= {"mean_dice": float(np.mean(dice)), "series_with_lesion": len(dice)}
    return facts


def _calibration_facts(scores: np.ndarray, labels: Sequence[int], config: ValidationConfig) -> dict[str, Any]:
    """Return Brier score and calibration error of calibrated validation probabilities, and how they were grouped."""
    if not config.calibrate:
        return {}
    truth = np.array(labels)
    error = expected_calibration_error(scores, truth)
    return {"unit": config.unit, "brier": float(((scores - truth) ** 2).mean()), "ece": error}


def _unit_of(one: Examined, unit: str) -> str:
    return one.sample.entry.id if unit == "series" else one.sample.patient


def _of_units(examined: Sequence[Examined], target: int, threshold: int, unit: str) -> dict[str, Evidence]:
    """Return the evidence of each series that was read, or each patient's: the largest number over its series."""
    found: dict[str, Evidence] = {}
    for one in examined:
        if one.error:
            continue
        name = _unit_of(one, unit)
        now, before = one.evidence(target, threshold), found.get(name)
        found[name] = now if before is None else _larger(before, now)
    return found


def _larger(a: Evidence, b: Evidence) -> Evidence:
    pairs: Mapping[str, float] = {
        name: float(np.fmax(getattr(a, name), getattr(b, name))) for name in ("logit", "volume_mm3", "max_probability")
    }
    return Evidence(**pairs)


def _labels(examined: Sequence[Examined], target: int, unit: str) -> dict[str, int]:
    """Return {patient or series: 0 or 1} where the label is known: by the table, or by the mask where it has none."""
    found: dict[str, int] = {}
    for one in examined:
        label = one.sample.labels[target] if one.sample.labels else math.nan
        if not one.sample.labels and one.sample.has_mask:
            label = float(one.sample.mask is not None)
        if not math.isnan(label):
            name = _unit_of(one, unit)
            found[name] = max(found.get(name, 0), int(label > 0.5))
    return found


def _rows(
    targets: Sequence[str],
    examined: Sequence[Examined],
    threshold: int,
    decision: Decision,
    config: ValidationConfig,
) -> list[Prediction]:
    rows = []
    for one in examined:
        for number, target in enumerate(targets):
            evidence = one.evidence(number, threshold)
            limit = decision.thresholds.get(target, math.nan)
            decided = None
            if target in decision.thresholds and not one.error:
                decided = int(rule_score(decision, target, calibrated(decision, target, evidence)) >= limit)
            rows.append(
                Prediction(
                    one.sample.patient,
                    one.sample.entry.id,
                    target,
                    calibrated(decision, target, evidence).probability,
                    logit=evidence.logit,
                    decision=decided,
                    threshold=limit if decision.rule == "cls" else math.nan,
                    split=config.split,
                    error=one.error,
                )
            )
    return rows

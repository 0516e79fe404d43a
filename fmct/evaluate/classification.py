"""How good the probabilities and decisions of one model and finding are, with intervals over patients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmct.errors import DataError
from fmct.evaluate.abstention import DECIDED, UNCERTAIN, abstention_facts
from fmct.evaluate.patient_scores import Scores
from fmct.metrics.bootstrap import RESAMPLES, stratified_interval
from fmct.metrics.calibration import BINS, ReliabilityBin, calibration_line, expected_calibration_error, reliability
from fmct.metrics.delong import Auroc, auroc, auroc_interval, mean_auroc
from fmct.metrics.intervals import Interval
from fmct.metrics.operating_point import OperatingPoint
from fmct.metrics.proportions import patient_share
from fmct.metrics.weighted_scores import (
    Statistic,
    average_precision_of,
    f1_of,
    mean_of,
    partial_auroc_of,
    sensitivity_at,
    share_of,
)

PARTIAL_UP_TO = 0.1
SPECIFICITIES = (0.90, 0.95, 0.99)
PREVALENCES = (0.001, 0.01, 0.2)
NO_THRESHOLD = (
    "no threshold: the predictions carry none, and there are no validation rows (split = val) to choose one on"
)


@dataclass(frozen=True)
class Settings:
    """How an evaluation is done; all of it is printed in the report.

    unit: what is one case, `patient` or `series`; intervals and tests draw patients either way. merge: series to
    patient. proportions: `wilson` or `clopper-pearson`. rule, level: of the operating point, where
    the predictions carry no threshold. prevalences: at which PPV and NPV are given.
    """

    merge: str = "max"
    proportions: str = "wilson"
    rule: str = "sensitivity"
    level: float = 0.95
    prevalences: tuple[float, ...] = PREVALENCES
    resamples: int = RESAMPLES
    seed: int = 0
    bins: int = BINS
    unit: str = "patient"

    def __post_init__(self) -> None:
        if not all(0 < share < 1 for share in self.prevalences) or self.resamples < 100:
            raise DataError("--prevalence: expected shares between 0 and 1; --resamples: at least 100.")


@dataclass(frozen=True)
class Finding:
    """One model's result for one target. metrics: {name: Interval}, each n/a with its reason where undefined.

    bins: the reliability curve. seeds: {seed: AUROC of that seed alone}. operating_point: where it was chosen here, on
    validation rows; calibrated: what temperature scaling, fitted there too, would give.
    """

    model: str
    scores: Scores
    found: Auroc
    metrics: dict[str, Interval]
    bins: list[ReliabilityBin] = field(default_factory=list)
    seeds: dict[str, float] = field(default_factory=dict)
    operating_point: OperatingPoint | None = None
    calibrated: dict[str, float] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The finding's name."""
        return self.scores.target

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "model": self.model,
            "target": self.target,
            "unit": self.scores.unit,
            "flow": {**self.scores.flow, **counts(self.scores)},
            "metrics": {name: interval.to_dict() for name, interval in self.metrics.items()},
            "reliability": [{"probability": b.probability, "observed": b.observed.to_dict()} for b in self.bins],
            "seeds": {seed: None if math.isnan(value) else value for seed, value in self.seeds.items()},
            "thresholds": list(self.scores.thresholds),
            "operating_point": self.operating_point.to_dict() if self.operating_point else None,
            "calibrated": self.calibrated,
            "abstention": abstention_facts(self.scores.labels, self.scores.uncertain, self.scores.bands),
        }


def counts(scores: Scores) -> dict[str, int]:
    """Return how many rows count, how many are positive, negative, and failed."""
    return {
        "evaluated": len(scores.labels),
        "positive": int((scores.labels == 1).sum()),
        "negative": int((scores.labels == 0).sum()),
        "failed": int(scores.failed.sum()),
    }


def rank_scores(scores: Scores) -> Auroc:
    """Return the AUROC over what has a probability."""
    kept = scores.only(~scores.failed)
    return auroc(kept.probabilities, kept.labels, kept.patients)


def measure(model: str, scores: Scores, settings: Settings, point: OperatingPoint | None = None) -> Finding:
    """Return a model's result for one target. Ranks and calibration are of scans that did not fail.

    A failed scan is a wrong decision: not positive for sensitivity, not negative for specificity.
    """
    kept = scores.only(~scores.failed)
    found = rank_scores(scores)
    metrics: dict[str, Interval] = {"AUROC": auroc_interval(found)}
    if scores.failed.any():
        worst = np.where(scores.failed, np.where(scores.labels == 1, -np.inf, np.inf), scores.probabilities)
        metrics["AUROC, failed scans ranked worst"] = auroc_interval(auroc(worst, scores.labels, scores.patients))
    p, y = kept.probabilities, kept.labels
    metrics[f"partial AUROC, FPR ≤ {PARTIAL_UP_TO:g}"] = _interval(
        partial_auroc_of(p, y, PARTIAL_UP_TO), kept, settings
    )
    metrics["AUPRC"] = _interval(average_precision_of(p, y), kept, settings)
    for specificity in SPECIFICITIES:
        name = f"sensitivity at specificity ≥ {specificity:.2f}"
        metrics[name] = _interval(sensitivity_at(p, y, specificity), kept, settings)
    metrics |= _decided(scores, settings) | _abstained(scores, settings)
    metrics |= _calibration(kept, settings)
    seeds = {
        seed: auroc(values[known], scores.labels[known], [scores.patients[k] for k in np.flatnonzero(known)]).value
        for seed, values in scores.seeds.items()
        for known in [~np.isnan(values)]
    }
    return Finding(model, scores, found, metrics, reliability(p, y, bins=settings.bins), seeds, point)


def macro(findings: Sequence[Finding], settings: Settings) -> dict[str, Interval]:
    """Return means over findings, {name: Interval}; the unit is the patient, who may count in several findings."""
    metrics = {"AUROC": auroc_interval(mean_auroc([finding.found for finding in findings]))}
    kept = [finding.scores.only(~finding.scores.failed) for finding in findings]
    metrics["AUPRC"] = _macro_interval([(k, average_precision_of(k.probabilities, k.labels)) for k in kept], settings)
    whole = [finding.scores for finding in findings]
    if all(scores.decided for scores in whole):
        sensitivity = [(s, share_of(s.counted, s.labels == 1)) for s in whole]
        specificity = [(s, share_of(~s.counted, s.labels == 0)) for s in whole]
        metrics["sensitivity"] = _macro_interval(sensitivity, settings)
        metrics["specificity"] = _macro_interval(specificity, settings)
        metrics["F1"] = _macro_interval([(s, f1_of(s.counted, s.labels)) for s in whole], settings)
    return metrics


def brier_of(scores: Scores) -> np.ndarray:
    """Return (n,) squared errors of the probabilities."""
    return (scores.probabilities - scores.labels) ** 2


def _decided(scores: Scores, settings: Settings) -> dict[str, Interval]:
    names = ["sensitivity", "specificity", "PPV", "NPV", "F1"]
    names += [f"{v} at prevalence {percent(prevalence)}" for prevalence in settings.prevalences for v in ("PPV", "NPV")]
    if not scores.decided:
        return {name: Interval(None, None, None, len(scores.labels), "", note=NO_THRESHOLD) for name in names}
    positive, true = scores.counted, scores.labels == 1
    parts = [(positive, true), (~positive, ~true), (true, positive), (~true, ~positive)]
    metrics = {
        name: _proportion(hits, cases, scores, settings) for name, (hits, cases) in zip(names, parts, strict=False)
    }
    metrics["F1"] = _interval(f1_of(positive, scores.labels), scores, settings)
    sensitivity, specificity = share_of(positive, true), share_of(~positive, ~true)
    for prevalence in settings.prevalences:
        for value in ("PPV", "NPV"):
            metrics[f"{value} at prevalence {percent(prevalence)}"] = _interval(
                _predictive(sensitivity, specificity, prevalence, value), scores, settings
            )
    return metrics


def _abstained(scores: Scores, settings: Settings) -> dict[str, Interval]:
    """Return the share of uncertain cases, and how good the calls on the others are; {} where none can be uncertain."""
    if scores.bands is None:
        return {}
    decided, positive, true = ~scores.uncertain, scores.counted, scores.labels == 1
    parts = [(positive == true, decided), (positive, decided & true), (~positive, decided & ~true)]
    shares = [_proportion(hits, cases, scores, settings) for hits, cases in parts]
    uncertain = _proportion(~decided, np.ones_like(decided), scores, settings)
    return {UNCERTAIN: uncertain, **dict(zip(DECIDED, shares, strict=True))}


def _predictive(sensitivity: Statistic, specificity: Statistic, prevalence: float, value: str) -> Statistic:
    def statistic(weights: np.ndarray) -> np.ndarray:
        """Return PPV or NPV (R,) at the prevalence, by Bayes' rule."""
        se, sp = sensitivity(weights), specificity(weights)
        right = se * prevalence if value == "PPV" else sp * (1 - prevalence)
        wrong = (1 - sp) * (1 - prevalence) if value == "PPV" else (1 - se) * prevalence
        return np.divide(right, right + wrong, out=np.full_like(right, np.nan), where=right + wrong > 0)

    return statistic


def _proportion(hits: np.ndarray, cases: np.ndarray, scores: Scores, settings: Settings) -> Interval:
    """Return a binomial interval where a row is a patient, else the bootstrap over patients."""
    if scores.unit == "patient":
        return patient_share(hits, cases, method=settings.proportions)
    return _interval(share_of(hits, cases), scores, settings)


def _calibration(kept: Scores, settings: Settings) -> dict[str, Interval]:
    p, y, n = kept.probabilities, kept.labels, len(set(kept.patients))
    error = expected_calibration_error(p, y, bins=settings.bins)
    line = calibration_line(p, y)
    noted = Interval(None, None, None, n, "", note="no patient has a probability")
    if n:
        noted = Interval(
            error, None, None, n, "", note="no interval: biased upwards in small samples, so not bootstrapped"
        )
    return {
        "Brier score": _interval(mean_of(brier_of(kept)), kept, settings),
        "ECE": noted,
        "calibration slope": line.slope,
        "calibration intercept": line.intercept,
    }


def _interval(statistic: Statistic, scores: Scores, settings: Settings) -> Interval:
    return stratified_interval(
        statistic, scores.patients, scores.labels, resamples=settings.resamples, seed=settings.seed
    )


def _macro_interval(parts: Sequence[tuple[Scores, Statistic]], settings: Settings) -> Interval:
    """Return the mean of several findings' statistics; patients are drawn from all of them, once for all findings."""
    patients = sorted({patient for scores, _ in parts for patient in scores.patients})
    place = {patient: number for number, patient in enumerate(patients)}
    columns = [np.array([place[patient] for patient in scores.patients], dtype=int) for scores, _ in parts]

    def statistic(weights: np.ndarray) -> np.ndarray:
        """Return (R,) means over findings; NaN when a finding is undefined."""
        return np.mean([part(weights[:, column]) for (_, part), column in zip(parts, columns, strict=True)], axis=0)

    return stratified_interval(
        statistic, patients, np.zeros(len(patients)), resamples=settings.resamples, seed=settings.seed
    )


def percent(share: float) -> str:
    """Return such as `0.1 %`."""
    return f"{100 * share:g} %"

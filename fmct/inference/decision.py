"""From a series' numbers to a decision: the rules, and the regression of the rule `fusion`, fitted on validation only.

Rules `cls` and `volume` are monotone: raising any window's logit, or any voxel's, cannot turn positive into negative.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fmct.errors import DataError
from fmct.publish.decision import Decision, Fusion


@dataclass(frozen=True)
class Evidence:
    """What a model found for one target of a series.

    logit: of the series, NaN without a classifier. volume_mm3: of the counted components, max_probability: the largest
    of a voxel; NaN without a segmentation.
    """

    logit: float = math.nan
    volume_mm3: float = math.nan
    max_probability: float = math.nan

    @property
    def probability(self) -> float:
        """The series' probability: of its logit, or without a classifier the largest of a voxel."""
        return self.max_probability if math.isnan(self.logit) else _sigmoid(self.logit)


@dataclass(frozen=True)
class Verdict:
    """probability: 0..1. score: what the rule compares with `threshold`. decision: None without a threshold (N7)."""

    probability: float
    score: float
    threshold: float = math.nan
    decision: bool | None = None


def decide(decision: Decision | None, target: str, evidence: Evidence) -> Verdict:
    """Return the verdict on one target: probability only where the model carries no threshold for it.

    A score equal to the threshold is positive. Raises DataError where the rule needs what the model does not give.
    """
    evidence = calibrated(decision, target, evidence)
    if decision is None or target not in decision.thresholds:
        return Verdict(evidence.probability, evidence.probability)
    score = rule_score(decision, target, evidence)
    threshold = decision.thresholds[target]
    probability = score if decision.rule == "fusion" else evidence.probability
    return Verdict(probability, score, threshold, score >= threshold)


def calibrated(decision: Decision | None, target: str, evidence: Evidence) -> Evidence:
    """Return the evidence with its logit divided by the temperature that the decision carries for the target."""
    temperature = decision.temperature.get(target, 1.0) if decision is not None else 1.0
    return evidence if temperature == 1.0 else replace(evidence, logit=evidence.logit / temperature)


def rule_score(decision: Decision, target: str, evidence: Evidence) -> float:
    """Return what the rule compares with its threshold, of calibrated evidence.

    Raises DataError where the model does not give it.
    """
    if decision.rule == "fusion":
        fusion = decision.fusion[target]
        features = fusion_features(evidence)
        return _sigmoid(fusion.intercept + sum(c * f for c, f in zip(fusion.coefficients, features, strict=True)))
    score = evidence.probability if decision.rule == "cls" else evidence.volume_mm3
    if math.isnan(score):
        needed = "a mask" if decision.rule == "volume" else "a probability"
        raise DataError(
            f"rule {decision.rule} needs {needed}, which this model does not give. Export it with a decision that fits "
            "its heads."
        )
    return score


def fusion_features(evidence: Evidence) -> tuple[float, float, float]:
    """Return (logit, log(1 + volume in mm³), largest voxel probability). Raises DataError where one is missing."""
    features = (evidence.logit, math.log1p(evidence.volume_mm3), evidence.max_probability)
    if any(math.isnan(value) for value in features):
        raise DataError(f"rule fusion needs a logit, a volume and a mask's probability; got {features}.")
    return features


def fit_fusion(validation: Sequence[Evidence], labels: Sequence[int]) -> Fusion:
    """Return the logistic regression on validation patients' evidence and labels (0 or 1), by scikit-learn (C = 1).

    Features are standardised for the fit; the coefficients returned are for the features as they are. Raises DataError
    without both classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features, wanted = np.array([fusion_features(evidence) for evidence in validation]), np.asarray(labels)
    if len(features) != len(wanted) or not np.isin(wanted, (0, 1)).all() or len(np.unique(wanted)) < 2:
        raise DataError(
            f"fusion: expected positive and negative validation patients, one label 0 or 1 each; got {len(features)} "
            f"patients and labels {sorted(set(wanted.tolist()))}."
        )
    centre, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=1000).fit((features - centre) / spread, wanted)
    coefficients = fitted.coef_[0] / spread
    intercept = float(fitted.intercept_[0] - coefficients @ centre)
    return Fusion((float(coefficients[0]), float(coefficients[1]), float(coefficients[2])), intercept)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))

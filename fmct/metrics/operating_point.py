"""The operating point: a threshold chosen on validation patients only, then frozen. Test data has no way in here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from fmct.errors import ArtefactError, DataError
from fmct.metrics.calibration import logits

RULES = ("sensitivity", "specificity", "youden")


@dataclass(frozen=True)
class OperatingPoint:
    """A frozen threshold: a score at or above it is positive.

    rule: of RULES; level: what that rate had to reach (NaN for youden). The counts are of the validation patients that
    chose it: true positives among positives, true negatives among negatives.
    """

    threshold: float
    rule: str
    level: float
    true_positives: int
    positives: int
    true_negatives: int
    negatives: int

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Return (n,) bool: positive or not."""
        return np.asarray(scores, dtype=np.float64) >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "level": None if math.isnan(self.level) else self.level}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "OperatingPoint":
        """Return the point of `to_dict`'s tree. Raises ArtefactError for another tree."""
        try:
            point = cls(**{**tree, "level": math.nan if tree["level"] is None else float(tree["level"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"operating point: not one that fmct wrote ({error}).") from None
        if point.rule not in RULES or not math.isfinite(point.threshold):
            raise ArtefactError(f"operating point: rule {point.rule!r}, threshold {point.threshold} mean nothing.")
        return point

    def __str__(self) -> str:
        """Return such as `≥ 0.412 (validation: specificity highest with sensitivity ≥ 0.95; 38/40, 90/100)`."""
        how = {
            "sensitivity": f"specificity highest with sensitivity ≥ {self.level:g}",
            "specificity": f"sensitivity highest with specificity ≥ {self.level:g}",
            "youden": "sensitivity + specificity highest",
        }[self.rule]
        sums = f"sensitivity {self.true_positives}/{self.positives}, specificity {self.true_negatives}/{self.negatives}"
        return f"≥ {self.threshold:.4g} (validation patients: {how}; {sums})"


def band_around(band: Sequence[float], threshold: float) -> tuple[float, float]:
    """Return [low, high], widened to hold the threshold, so that no call outside it contradicts the decision."""
    low, high = band
    return min(low, threshold), max(high, threshold)


def midway(point: OperatingPoint, validation_scores: np.ndarray) -> OperatingPoint:
    """Return the point with its threshold halfway, in log-odds, down to the next lower validation score.

    Every validation decision stays. Where classes are far apart the threshold is then in the gap, and not at the score
    of the least certain positive, below which a new one would fall as often as not. validation_scores: probabilities.
    """
    lower = validation_scores[validation_scores < point.threshold]
    if not len(lower) or not 0 < point.threshold <= 1:
        return point
    ends = logits(np.array([float(lower.max()), point.threshold]))
    threshold = float(1 / (1 + np.exp(-ends.mean())))
    return replace(point, threshold=threshold) if lower.max() < threshold <= point.threshold else point


def choose(
    validation_scores: np.ndarray, validation_labels: np.ndarray, rule: str = "sensitivity", level: float = 0.95
) -> OperatingPoint:
    """Return the threshold that `rule` chooses among validation patients' scores; one (n,) value a patient.

    sensitivity: the highest specificity with sensitivity ≥ level. specificity: the highest sensitivity with specificity
    ≥ level; where only "nobody is positive" reaches it, the threshold lies just above the highest score. youden: the
    highest sensitivity + specificity, and the highest threshold of equals. Raises DataError without both classes.
    """
    scores, labels = np.asarray(validation_scores, dtype=np.float64), np.asarray(validation_labels)
    if rule not in RULES or not 0 < level <= 1:
        raise DataError(
            f"operating point: expected a rule of {', '.join(RULES)} and a level in 0..1; got {rule} {level}."
        )
    if scores.shape != labels.shape or not np.isfinite(scores).all() or not np.isin(labels, (0, 1)).all():
        raise DataError("operating point: expected one finite score and one label 0 or 1 for each validation patient.")
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        raise DataError(
            f"operating point: the validation patients are {positives} positive and {negatives} negative; choosing a "
            "threshold needs both. Put more patients into validation, or predict probabilities only."
        )
    alarms, hits, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    true_positives, true_negatives = np.rint(hits * positives), np.rint((1 - alarms) * negatives)
    if rule == "sensitivity":  # thresholds fall: the first that reaches the level keeps the most specificity
        place = int(np.flatnonzero(true_positives >= level * positives - 1e-9)[0])
    elif rule == "specificity":
        reached = np.flatnonzero(true_negatives >= level * negatives - 1e-9)
        best = reached[true_positives[reached] == true_positives[reached].max()]
        place = int(best[0])
    else:
        place = int(np.argmax(true_positives / positives + true_negatives / negatives))
    threshold = float(thresholds[place]) if place else math.nextafter(float(scores.max()), math.inf)
    return OperatingPoint(
        threshold,
        rule,
        math.nan if rule == "youden" else level,
        int(true_positives[place]),
        positives,
        int(true_negatives[place]),
        negatives,
    )

"""FROC: lesions found against false positives per subject, pooled over all subjects, those without lesions too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmct.metrics.bootstrap import RESAMPLES, stratified_interval
from fmct.metrics.intervals import Interval
from fmct.metrics.lesions import MatchedScan
from fmct.metrics.weighted_scores import Statistic

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Froc:
    """The curve: at thresholds (T,) falling, sensitivity (T,) over all lesions and false positives per subject (T,).

    sensitivity_at: {rate: Interval}, the highest sensitivity of any threshold with at most that rate. mean: over RATES.
    per_negative: false positives per subject without a lesion, all candidates counted (the lowest threshold);
    per_subject, sensitivity_all and precision likewise.
    """

    thresholds: np.ndarray
    sensitivity: np.ndarray
    rate: np.ndarray
    sensitivity_at: dict[float, Interval]
    mean: Interval
    sensitivity_all: Interval
    per_subject: Interval
    per_negative: Interval
    precision: Interval
    subjects: int
    lesions: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "subjects": self.subjects,
            "lesions": self.lesions,
            "sensitivity_at_fp_per_subject": {f"{rate:g}": i.to_dict() for rate, i in self.sensitivity_at.items()},
            "mean_sensitivity": self.mean.to_dict(),
            "all_candidates": {
                "sensitivity": self.sensitivity_all.to_dict(),
                "fp_per_subject": self.per_subject.to_dict(),
                "fp_per_subject_without_lesion": self.per_negative.to_dict(),
                "precision": self.precision.to_dict(),
            },
            "curve": [
                {"threshold": t, "sensitivity": s, "fp_per_subject": r}
                for t, s, r in zip(self.thresholds.tolist(), self.sensitivity.tolist(), self.rate.tolist(), strict=True)
            ],
        }


def froc(scans: Sequence[MatchedScan], *, resamples: int = RESAMPLES, seed: int = 0) -> Froc:
    """Return the FROC of matched scans. Scans of one patient share its weight; intervals are over patients."""
    patients = [scan.patient for scan in scans]
    share = np.array([1.0 / patients.count(patient) for patient in patients])
    best, false = [scan.best_scores() for scan in scans], [scan.false_positives() for scan in scans]
    scores = {s for group in (*best, *false) for s in group if np.isfinite(s)}
    thresholds = np.array(sorted(scores, reverse=True) or [np.inf])
    hits = np.array([[np.sum(np.array(b) >= t) for t in thresholds] for b in best], dtype=float) * share[:, None]
    alarms = np.array([[np.sum(np.array(f) >= t) for t in thresholds] for f in false], dtype=float) * share[:, None]
    lesions = np.array([len(b) for b in best], dtype=float) * share
    strata = np.array([int(len(b) > 0) for b in best])

    def interval(statistic: Statistic) -> Interval:
        """Return the statistic with its interval over patients."""
        return stratified_interval(statistic, patients, strata, resamples=resamples, seed=seed)

    sensitivity, rate = _curve(np.ones((1, len(scans))), hits, alarms, lesions, share)
    at = {limit: interval(_sensitivity_at((limit,), hits, alarms, lesions, share)) for limit in RATES}
    without = (strata == 0).astype(float) * share
    with_found = np.array([sum(bool(c.hits) for c in scan.candidates) for scan in scans], dtype=float) * share
    return Froc(
        thresholds,
        sensitivity[0],
        rate[0],
        at,
        interval(_sensitivity_at(RATES, hits, alarms, lesions, share)),
        interval(lambda w: _over(w @ hits[:, -1], w @ lesions)),
        interval(lambda w: _over(w @ alarms[:, -1], w @ share)),
        interval(lambda w: _over(w @ (alarms[:, -1] * (strata == 0)), w @ without)),
        interval(lambda w: _over(w @ with_found, w @ (with_found + alarms[:, -1]))),
        len(set(patients)),
        int(sum(len(b) for b in best)),
    )


def _curve(
    weights: np.ndarray, hits: np.ndarray, alarms: np.ndarray, lesions: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (R, T) sensitivity and false positives per subject."""
    return _over(weights @ hits, (weights @ lesions)[:, None]), _over(weights @ alarms, (weights @ share)[:, None])


def _sensitivity_at(
    limits: Sequence[float], hits: np.ndarray, alarms: np.ndarray, lesions: np.ndarray, share: np.ndarray
) -> Statistic:
    def statistic(weights: np.ndarray) -> np.ndarray:
        """Return (R,): the mean over `limits` of the highest sensitivity with at most so many false positives."""
        sensitivity, rate = _curve(weights, hits, alarms, lesions, share)
        found = [np.where(rate <= limit + 1e-12, sensitivity, 0.0).max(axis=1) for limit in limits]
        return np.where(np.isnan(sensitivity[:, 0]), np.nan, np.mean(found, axis=0))

    return statistic


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    wide = np.broadcast_to(denominator, numerator.shape)
    return np.divide(numerator, wide, out=np.full(numerator.shape, np.nan), where=wide > 0)

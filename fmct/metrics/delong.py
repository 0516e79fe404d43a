"""AUROC with the variance of DeLong, DeLong and Clarke-Pearson (1988), from placement values; ties count one half.

Every result comes from one vector: the influence φ of each patient on the AUROC, scaled so that Σ φ² is DeLong's
variance, and Σ (φ_a − φ_b)² the variance of a difference of two models on the same patients. Where a patient has
several rows, φ is summed within the patient first (Obuchowski 1997). The mean AUROC of several findings has the mean of
their φ: patients, not findings, stay the unit. Placement values come from midranks (Sun and Xu 2014).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fmct.metrics.intervals import SMALLEST_SAMPLE, Interval, too_few

METHOD = "delong"


@dataclass(frozen=True)
class Auroc:
    """An AUROC (NaN where undefined, and `note` says why) and each patient's influence on it, {patient: φ}."""

    value: float
    influence: dict[str, float]
    note: str = ""

    @property
    def variance(self) -> float:
        """Return DeLong's variance, NaN where a class has fewer than two patients."""
        return float(sum(phi**2 for phi in self.influence.values())) if self.influence else math.nan


def auroc(scores: np.ndarray, labels: np.ndarray, patients: Sequence[str] | None = None) -> Auroc:
    """Return the AUROC of (n,) scores and (n,) labels 0 or 1. patients: (n,) whose each row is; default one each."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    owner = [str(k) for k in range(len(x))] if patients is None else [str(p) for p in patients]
    if x.shape != y.shape or len(owner) != len(x) or np.isnan(x).any():
        raise ValueError(f"auroc: expected as many scores as labels and no NaN; got {x.shape}, {y.shape}.")
    m, n = int(y.sum()), int((~y).sum())
    if m == 0 or n == 0:
        return Auroc(math.nan, {}, f"undefined: {_count(m, 'positive')} and {_count(n, 'negative')}")
    placement = np.empty(len(x))
    ranks = stats.rankdata(x)
    placement[y] = (ranks[y] - stats.rankdata(x[y])) / n
    placement[~y] = 1.0 - (ranks[~y] - stats.rankdata(x[~y])) / m
    value = float(placement[y].mean())
    owners = list(owner)
    sides = [_side(placement, rows, owners, value) for rows in (np.flatnonzero(y), np.flatnonzero(~y))]
    if any(side is None for side in sides):
        return Auroc(value, {}, "no variance: a class has one patient only")
    influence: dict[str, float] = {}
    for side in sides:
        for name, phi in (side or {}).items():
            influence[name] = influence.get(name, 0.0) + phi
    return Auroc(value, influence)


def auroc_interval(found: Auroc, *, level: float = 0.95) -> Interval:
    """Return the AUROC with an interval that is symmetric on the logit scale, so that it stays inside 0..1."""
    n = len(found.influence)
    if not math.isfinite(found.value):
        return Interval(None, None, None, n, METHOD, level, found.note)
    if not found.influence:
        return Interval(found.value, None, None, n, METHOD, level, found.note)
    if n < SMALLEST_SAMPLE:
        return Interval(found.value, None, None, n, METHOD, level, too_few(n))
    apart = not 0 < found.value < 1
    if apart or found.variance == 0:
        why = "the classes do not overlap" if apart else "no patient stands out from the others of its class"
        note = f"no interval: DeLong's variance is 0 when {why}"
        return Interval(found.value, None, None, n, METHOD, level, note)
    centre = math.log(found.value / (1 - found.value))
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(found.variance) / (found.value * (1 - found.value))
    low, high = (1 / (1 + math.exp(-(centre + side * half))) for side in (-1, 1))
    return Interval(found.value, low, high, n, METHOD, level)


def mean_auroc(findings: Sequence[Auroc]) -> Auroc:
    """Return the mean over findings of the same patients (macro AUROC); undefined when any of them is."""
    undefined = sum(not math.isfinite(found.value) for found in findings)
    if undefined or not findings:
        return Auroc(math.nan, {}, f"undefined for {undefined} of {len(findings)} findings")
    value = float(np.mean([found.value for found in findings]))
    if not all(found.influence for found in findings):
        return Auroc(value, {}, "no variance: a finding has one patient of a class only")
    patients = {patient for found in findings for patient in found.influence}
    return Auroc(value, {p: sum(f.influence.get(p, 0.0) for f in findings) / len(findings) for p in sorted(patients)})


@dataclass(frozen=True)
class AurocDifference:
    """First minus second on the same patients, its interval, and the two-sided p value; None where undefined."""

    interval: Interval
    p: float | None


def paired_delong(first: Auroc, second: Auroc, *, level: float = 0.95) -> AurocDifference:
    """Return the difference of two models' AUROC on the same patients. A model against itself: 0 and p = 1."""
    n = len(first.influence)
    note = first.note or second.note
    if first.influence.keys() != second.influence.keys():
        raise ValueError(f"paired_delong: {n} and {len(second.influence)} patients are not the same.")
    if not math.isfinite(first.value) or not math.isfinite(second.value):
        return AurocDifference(Interval(None, None, None, n, METHOD, level, note), None)
    gain = first.value - second.value
    if not first.influence or n < SMALLEST_SAMPLE:
        return AurocDifference(Interval(gain, None, None, n, METHOD, level, note or too_few(n)), None)
    variance = sum((phi - second.influence[patient]) ** 2 for patient, phi in first.influence.items())
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    if variance > 0:
        p = float(2 * stats.norm.sf(abs(gain) / math.sqrt(variance)))
        return AurocDifference(Interval(gain, gain - half, gain + half, n, METHOD, level), p)
    if gain == 0:
        return AurocDifference(Interval(0.0, 0.0, 0.0, n, METHOD, level, "both rank every pair alike"), 1.0)
    return AurocDifference(Interval(gain, None, None, n, METHOD, level, "no interval: the variance is 0"), None)


def _side(placement: np.ndarray, rows: np.ndarray, owner: list[str], value: float) -> dict[str, float] | None:
    """Return {patient: φ} of one class, None when it has one patient only."""
    sums: dict[str, float] = {}
    for row in rows.tolist():
        sums[owner[row]] = sums.get(owner[row], 0.0) + float(placement[row]) - value
    if len(sums) < 2:
        return None
    scale = math.sqrt(len(sums) / (len(sums) - 1)) / len(rows)
    return {patient: scale * total for patient, total in sums.items()}


def _count(number: int, what: str) -> str:
    return f"{number} {what} patient{'s' if number != 1 else ''}"

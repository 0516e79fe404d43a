"""Results by site, vendor, sex, age …: the same frozen decisions, on the patients of each value of a column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmct.errors import DataError
from fmct.evaluate.classification import Finding, Settings, rank_scores
from fmct.evaluate.patient_scores import Scores, Truth
from fmct.metrics.delong import auroc_interval
from fmct.metrics.intervals import Interval
from fmct.metrics.proportions import patient_share

_MOST_VALUES = 8


@dataclass(frozen=True)
class Subgroup:
    """One model and target on the patients of one value of one column."""

    column: str
    value: str
    model: str
    target: str
    patients: int
    positive: int
    auroc: Interval
    sensitivity: Interval
    specificity: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: value.to_dict() if isinstance(value, Interval) else value for name, value in vars(self).items()}


def subgroups(
    findings: Mapping[str, Mapping[str, Finding]], truth: Truth, by: Sequence[str], settings: Settings
) -> list[Subgroup]:
    """Return the results of each value of each column of `by`; numbers of many values are cut into thirds.

    Raises DataError for a column that the labels lack.
    """
    known = {column for given in truth.facts.values() for column in given}
    for column in by:
        if column not in known:
            raise DataError(f"--by {column}: the labels have no such column; there are {', '.join(sorted(known))}.")
    results = []
    for column in by:
        scored = sorted({p for found in findings.values() for f in found.values() for p in f.scores.patients})
        groups = _groups({patient: truth.facts.get(patient, {}).get(column, "") for patient in scored})
        for value, members in groups.items():
            for model, found in findings.items():
                for target, finding in found.items():
                    keep = np.array([patient in members for patient in finding.scores.patients], dtype=bool)
                    if keep.any():
                        results.append(_subgroup(column, value, model, target, finding.scores.only(keep), settings))
    return results


def _subgroup(column: str, value: str, model: str, target: str, scores: Scores, settings: Settings) -> Subgroup:
    positive = scores.labels == 1
    none = Interval(None, None, None, len(positive), "", note="no threshold")
    shares = [none, none]
    if scores.decided:
        counted = scores.counted
        shares = [
            patient_share(right, cases, method=settings.proportions)
            for right, cases in ((counted, positive), (~counted, ~positive))
        ]
    ranks = auroc_interval(rank_scores(scores))
    return Subgroup(column, value, model, target, len(positive), int(positive.sum()), ranks, *shares)


def _groups(values: Mapping[str, str]) -> dict[str, set[str]]:
    """Return {value: patients}, in order; empty cells are "unknown"."""
    texts = {patient: text.strip() for patient, text in values.items()}
    numbers = {patient: number for patient, text in texts.items() if (number := _number(text)) is not None}
    many = len(set(texts.values())) > _MOST_VALUES
    if many and numbers and all(patient in numbers for patient, text in texts.items() if text not in ("", "several")):
        low, high = (float(q) for q in np.quantile(list(numbers.values()), [1 / 3, 2 / 3]))
        names = [f"up to {low:g}", f"over {low:g}, up to {high:g}", f"over {high:g}"]
        named = {p: names[int(n > low) + int(n > high)] for p, n in numbers.items()}
        texts = {patient: named.get(patient, text) for patient, text in texts.items()}
        order = [*names, "several", ""]
    else:
        order = sorted(set(texts.values()), key=lambda text: (text == "", _number(text) or 0.0, text))
    groups = {text: {p for p, t in texts.items() if t == text} for text in order}
    return {text or "unknown": members for text, members in groups.items() if members}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None

"""What a detector finds, stage by stage: over all lesions pooled, and per subject; the two never in one table.

Pooled (micro): TPR = lesions found / lesions, FPavg = false candidates / subjects, those without lesions too, and
precision = TP / (TP + FP) with TP the lesions found. Then precision = TPR · N / (TPR · N + FPavg · S), which each
result is checked with. Per subject (macro): the same of each subject, meaned over the subjects for whom it is defined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmct.errors import DataError
from fmct.metrics.bootstrap import RESAMPLES, stratified_interval
from fmct.metrics.froc import Froc, froc
from fmct.metrics.intervals import Interval, t_interval
from fmct.metrics.lesions import MatchedScan

POOLED, PER_SUBJECT = "pooled", "per subject"
MEASURES = ("cluster TPR", "FP per subject", "cluster precision")


@dataclass(frozen=True)
class Measure:
    """One number with its interval. how: POOLED or PER_SUBJECT."""

    name: str
    how: str
    value: Interval


@dataclass(frozen=True)
class StageScores:
    """What is left after a stage. lesions, found, false: totals; subjects: S. pooled, per_subject: MEASURES."""

    stage: str
    subjects: int
    lesions: int
    found: int
    false: int
    pooled: tuple[Measure, ...]
    per_subject: tuple[Measure, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        counts = {name: getattr(self, name) for name in ("stage", "subjects", "lesions", "found", "false")}
        tables = ((POOLED, self.pooled), (PER_SUBJECT, self.per_subject))
        return {**counts, **{how: {m.name: m.value.to_dict() for m in measures} for how, measures in tables}}


def pooled_precision(tpr: float, lesions: float, fp_per_subject: float, subjects: float) -> float:
    """Return TPR · N / (TPR · N + FPavg · S), NaN where nothing was called."""
    found, false = tpr * lesions, fp_per_subject * subjects
    return found / (found + false) if found + false > 0 else float("nan")


def score_stage(stage: str, scans: Sequence[MatchedScan], *, resamples: int = RESAMPLES, seed: int = 0) -> StageScores:
    """Return the scores of a stage's matched scans, one a subject at least. Scans of one subject share its weight.

    Raises DataError when there is no scan, or when the pooled identity does not hold.
    """
    if not scans:
        raise DataError(f"{stage}: no series to evaluate.")
    patients = [scan.patient for scan in scans]
    share = np.array([1.0 / patients.count(patient) for patient in patients])
    lesions = np.array([len(scan.lesions_mm3) for scan in scans], dtype=float)
    found = np.array([np.isfinite(scan.best_scores()).sum() for scan in scans], dtype=float)
    false = np.array([len(scan.false_positives()) for scan in scans], dtype=float)
    strata = (lesions > 0).astype(int)

    def pooled(numerator: np.ndarray, denominator: np.ndarray) -> Interval:
        """Return Σ w · numerator / Σ w · denominator with an interval over subjects."""
        top, bottom = numerator * share, denominator * share
        return stratified_interval(
            lambda w: _ratio(w @ top, w @ bottom), patients, strata, resamples=resamples, seed=seed
        )

    values = (pooled(found, lesions), pooled(false, np.ones_like(false)), pooled(found, found + false))
    _check_identity(stage, values, float(lesions @ share), float(share.sum()))
    defined = (lesions > 0, np.ones(len(scans), dtype=bool), found + false > 0)
    each = (_ratio(found, lesions), false, _ratio(found, found + false))
    return StageScores(
        stage,
        len(set(patients)),
        int(lesions.sum()),
        int(found.sum()),
        int(false.sum()),
        tuple(Measure(name, POOLED, value) for name, value in zip(MEASURES, values, strict=True)),
        tuple(
            Measure(name, PER_SUBJECT, t_interval(_by_subject(patients, x, known)))
            for name, x, known in zip(MEASURES, each, defined, strict=True)
        ),
    )


def final_froc(scans: Sequence[MatchedScan], *, resamples: int = RESAMPLES, seed: int = 0) -> Froc:
    """Return the FROC of scans whose candidates carry the scores to rank by."""
    return froc(scans, resamples=resamples, seed=seed)


def table_rows(rows: Mapping[str, Sequence[Measure]]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows) of a table: {row: its measures}. Raises DataError when both kinds meet."""
    kinds = {measure.how for measures in rows.values() for measure in measures}
    if len(kinds) > 1:
        raise DataError(
            "a table cannot hold pooled values beside values per subject: a mean over subjects and a share of all "
            "lesions are different quantities under one name. Make two tables."
        )
    names = list(dict.fromkeys(measure.name for measures in rows.values() for measure in measures))
    lines = []
    for row, measures in rows.items():
        values = {measure.name: str(measure.value) for measure in measures}
        lines.append([row, *(values.get(name, "–") for name in names)])
    return [f"stage ({kinds.pop()})" if kinds else "stage", *names], lines


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def stage_tables(stages: Sequence[StageScores], *, title: str) -> str:
    """Return the two tables of a run as Markdown under its title: pooled, as the paper's Table 3, and per subject."""
    pooled = markdown(*table_rows({s.stage: s.pooled for s in stages}))
    each = markdown(*table_rows({s.stage: s.per_subject for s in stages}))
    first = stages[0]
    counts = f"{first.subjects} subjects, {first.lesions} lesions; intervals of 95 % over subjects."
    return f"{title}. {counts}\n\n{pooled}\n\n{each}\n"


def per_patient(scans: Sequence[MatchedScan]) -> dict[str, dict[str, float]]:
    """Return {measure: {patient: value}}: TPR of those with lesions, FP and F1 of all (no lesion and no call is 1)."""
    values: dict[str, dict[str, float]] = {"tpr": {}, "fp": {}, "f1": {}}
    for patient in dict.fromkeys(scan.patient for scan in scans):
        own = [scan for scan in scans if scan.patient == patient]
        lesions = sum(len(scan.lesions_mm3) for scan in own)
        found = int(sum(np.isfinite(scan.best_scores()).sum() for scan in own))
        false = sum(len(scan.false_positives()) for scan in own)
        if lesions:
            values["tpr"][patient] = found / lesions
        values["fp"][patient] = false / len(own)
        wrong = false + lesions - found
        values["f1"][patient] = 2 * found / (2 * found + wrong) if found or wrong else 1.0
    return values


def _check_identity(stage: str, values: Sequence[Interval], lesions: float, subjects: float) -> None:
    tpr, rate, precision = (value.estimate for value in values)
    if precision is None or rate is None:
        return
    expected = pooled_precision(tpr or 0.0, lesions, rate, subjects)
    if not abs(expected - precision) < 1e-9:
        raise DataError(
            f"{stage}: precision {precision} is not TPR·N / (TPR·N + FPavg·S) = {expected}: the counts contradict each "
            "other, so nothing is reported."
        )


def _by_subject(patients: Sequence[str], values: np.ndarray, known: np.ndarray) -> list[float]:
    owners = [patient for patient, one in zip(patients, known, strict=True) if one]
    kept = values[known]
    return [
        float(np.mean([v for v, owner in zip(kept, owners, strict=True) if owner == patient]))
        for patient in dict.fromkeys(owners)
    ]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)

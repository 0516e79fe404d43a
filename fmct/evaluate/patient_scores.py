"""From predictions and labels to one score per patient: seeds averaged first, then series merged by a stated rule."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fmct.errors import DataError
from fmct.evaluate.abstention import Bands, in_band, mean_bands
from fmct.inference.predictions import Prediction, check_name
from fmct.table_files import read_rows

MERGES: dict[str, Callable[[Sequence[float]], float]] = {"max": max, "mean": lambda values: float(np.mean(values))}
_UNKNOWN = {"", "na", "nan", "n/a", "none", "null", "unknown", "?"}


@dataclass(frozen=True)
class Truth:
    """Labels of a table. labels: {target: {(patient, series): 0 or 1}}, series "" where a row means the whole patient.

    A pair that is absent is unknown. rows: every (patient, series) that the table names; facts: {patient: {column:
    text}} of its other columns, "several" where a patient's rows differ.
    """

    labels: Mapping[str, Mapping[tuple[str, str], int]]
    rows: frozenset[tuple[str, str]]
    facts: Mapping[str, Mapping[str, str]]

    @property
    def patients(self) -> set[str]:
        """Every patient that the table names."""
        return {patient for patient, _ in self.rows}

    def of_series(self, target: str, patient: str, series: str) -> int | None:
        """Return a series' label, or its patient's where the table labels patients; None when unknown."""
        known = self.labels[target]
        return known.get((patient, series), known.get((patient, "")))

    def of_patient(self, target: str, patient: str) -> int | None:
        """Return 1 when any row is positive, 0 when every row of the patient is known and negative, else None."""
        rows = [self.labels[target].get(row) for row in self._rows_of.get(patient, ())]
        return 1 if 1 in rows else 0 if rows and None not in rows else None

    @property
    def _rows_of(self) -> Mapping[str, list[tuple[str, str]]]:
        cached = self.__dict__.get("_grouped")
        if cached is None:
            cached = defaultdict(list)
            for row in self.rows:
                cached[row[0]].append(row)
            object.__setattr__(self, "_grouped", cached)
        return cached


def read_truth(path: str | Path, targets: Sequence[str]) -> Truth:
    """Return the labels of a table with the columns patient, perhaps series, and one per target; empty is unknown.

    Raises DataError for a missing column, an id with spaces around it, a label other than 0 and 1, or a row twice.
    """
    rows = read_rows(path)
    missing = [name for name in ("patient", *targets) if name not in rows[0]]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(rows[0])}. A table of labels has a column "
            "patient, perhaps series, and one column of 0, 1 or empty (unknown) for each target that was predicted."
        )
    labels: dict[str, dict[tuple[str, str], int]] = {target: {} for target in targets}
    facts: dict[str, dict[str, str]] = {}
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}: row {number}"
        check_name(row["patient"], "patient", where)
        series = row.get("series", "")
        if series:
            check_name(series, "series", where)
        key = (row["patient"], series)
        if seen.setdefault(key, number) != number:
            raise DataError(
                f"{path}: rows {seen[key]} and {number} are both patient {key[0]}, series {series or '(all)'}."
            )
        for target in targets:
            label = _label(row[target], f"{where}: {target}")
            if label is not None:
                labels[target][key] = label
        given = facts.setdefault(row["patient"], {})
        for column, text in row.items():
            if column not in ("patient", "series", *targets) and given.setdefault(column, text) != text:
                given[column] = "several"
    return Truth(labels, frozenset(seen), facts)


@dataclass(frozen=True)
class Scores:
    """One model and target; a row is a patient, or a series (unit).

    labels (n,) 0 or 1; probabilities (n,), NaN where all scans failed; decisions (n,) 0 or 1, NaN where there is none.
    seeds: {seed: (n,) probabilities}, where several. thresholds: the frozen ones that were met; flow: counts for the
    report of who is in and who is not. bands: (n, 2) the probabilities, from low on and below high, that the model
    calls uncertain; None where it never abstains.
    """

    target: str
    unit: str
    patients: list[str]
    series: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    decisions: np.ndarray
    seeds: Mapping[str, np.ndarray] = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()
    flow: Mapping[str, int] = field(default_factory=dict)
    bands: np.ndarray | None = None

    @property
    def uncertain(self) -> np.ndarray:
        """Return (n,) bool: the model abstains. A failed scan is not uncertain: it is a wrong decision."""
        return in_band(self.probabilities, self.bands)

    @property
    def failed(self) -> np.ndarray:
        """Return (n,) bool: no probability."""
        return np.isnan(self.probabilities)

    @property
    def decided(self) -> bool:
        """Whether every scan that did not fail has a decision."""
        return bool(len(self.labels)) and not np.isnan(self.decisions[~self.failed]).any()

    @property
    def counted(self) -> np.ndarray:
        """Return (n,) bool decisions, a failed scan's being wrong: neither found nor cleared."""
        return np.where(self.failed, 1 - self.labels, self.decisions).astype(bool)

    def with_decisions(self, decisions: np.ndarray, thresholds: tuple[float, ...]) -> "Scores":
        """Return the same with other decisions; a failed scan's stay undefined."""
        placed = np.where(self.failed, np.nan, np.asarray(decisions, dtype=np.float64))
        return Scores(**{**vars(self), "decisions": placed, "thresholds": thresholds})

    def only(self, keep: np.ndarray) -> "Scores":
        """Return the rows where (n,) bool `keep` holds."""
        rows = np.flatnonzero(keep)
        return Scores(
            self.target,
            self.unit,
            [self.patients[k] for k in rows],
            [self.series[k] for k in rows],
            self.labels[rows],
            self.probabilities[rows],
            self.decisions[rows],
            {seed: values[rows] for seed, values in self.seeds.items()},
            self.thresholds,
            self.flow,
            None if self.bands is None else self.bands[rows],
        )


def score_units(
    predictions: Sequence[Prediction],
    truth: Truth,
    target: str,
    *,
    unit: str = "patient",
    merge: str = "max",
    bands: Bands | None = None,
) -> Scores:
    """Return the scores of one target: per patient (series merged by `merge` of MERGES), or per series.

    Seeds, and folds where a scan is in several, are averaged within each series first. A frozen threshold is applied to
    the merged probability, and so is the band of a model that may abstain (see fmct.evaluate.abstention); decisions
    that no probability threshold explains (another rule) are merged themselves.
    """
    rows = [p for p in predictions if p.target == target]
    units = _units(rows, unit)
    known: dict[tuple[str, str], int] = {}
    for key in units:
        label = truth.of_series(target, *key) if unit == "series" else truth.of_patient(target, key[0])
        if label is not None:
            known[key] = label
    kept = [units[key] for key in known]
    by_probability = all(_explained(p) for p in rows)
    names = sorted({p.seed for p in rows})
    return Scores(
        target,
        unit,
        [patient for patient, _ in known],
        [series for _, series in known],
        np.array(list(known.values()), dtype=int),
        _probabilities(kept, merge),
        _by_threshold(kept, merge) if by_probability else _by_vote(kept, merge),
        {name: _probabilities(_of_seed(kept, name), merge) for name in (names if len(names) > 1 else ())},
        tuple(sorted({p.threshold for p in rows if not math.isnan(p.threshold)})) if by_probability else (),
        _flow(truth, target, rows, kept, len({key[0] for key in units} - {key[0] for key in known})),
        mean_bands([[p for s in unit for p in s] for unit in kept], bands or {}) if by_probability else None,
    )


Series = list[Prediction]  # the rows of one series, one for each seed


def _units(rows: Sequence[Prediction], unit: str) -> dict[tuple[str, str], list[Series]]:
    """Return {(patient, series or ""): its series}, in order of name."""
    by_series: dict[tuple[str, str], Series] = defaultdict(list)
    for prediction in rows:
        by_series[prediction.patient, prediction.series].append(prediction)
    units: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for key in sorted(by_series):
        units[key if unit == "series" else (key[0], "")].append(by_series[key])
    return units


def _probabilities(units: Sequence[Sequence[Series]], merge: str) -> np.ndarray:
    return np.array([_merged([_mean(p.probability for p in s) for s in unit], merge) for unit in units])


def _by_threshold(units: Sequence[Sequence[Series]], merge: str) -> np.ndarray:
    thresholds = np.array([_mean(p.threshold for s in unit for p in s) for unit in units])
    probabilities = _probabilities(units, merge)
    return np.where(np.isnan(probabilities) | np.isnan(thresholds), np.nan, probabilities >= thresholds)


def _by_vote(units: Sequence[Sequence[Series]], merge: str) -> np.ndarray:
    """Return decisions: of a series the majority of its seeds, of a patient any series (max) or the majority (mean)."""
    series = [[_at_least_half(_mean(_vote(p) for p in s)) for s in unit] for unit in units]
    return np.array([_at_least_half(_merged(votes, merge)) for votes in series])


def _of_seed(units: Sequence[Sequence[Series]], seed: str) -> list[list[Series]]:
    return [[[p for p in s if p.seed == seed] for s in unit] for unit in units]


def _flow(
    truth: Truth, target: str, rows: Sequence[Prediction], kept: Sequence[Sequence[Series]], unknown: int
) -> dict[str, int]:
    predicted = {p.patient for p in rows}
    labelled = {patient for patient in truth.patients if truth.of_patient(target, patient) is not None}
    return {
        "patients predicted": len(predicted),
        "patients labelled": len(labelled),
        "predicted, label unknown": unknown,
        "labelled, not predicted": len(labelled - predicted),
        "series": sum(len(unit) for unit in kept),
        "failed series": sum(all(p.failed for p in s) for unit in kept for s in unit),
    }


def _label(text: str, where: str) -> int | None:
    text = text.strip().lower()
    if text in _UNKNOWN:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value not in (0.0, 1.0):
        raise DataError(f"{where} is {text!r}; expected 0, 1, or empty for unknown (unknown is never 0).")
    return int(value)


def _explained(prediction: Prediction) -> bool:
    """Whether a decision is what the probability's threshold gives, or there is none."""
    if prediction.decision is None or prediction.failed:
        return True
    return prediction.decision == int(prediction.probability >= prediction.threshold)


def _vote(prediction: Prediction) -> float:
    return math.nan if prediction.decision is None else float(prediction.decision)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _merged(values: Sequence[float], merge: str) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(MERGES[merge](known)) if known else math.nan


def _at_least_half(share: float) -> float:
    return share if math.isnan(share) else float(share >= 0.5)

"""Two models on the same patients: paired DeLong, McNemar, paired bootstrap and sign flips, with Holm's correction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fmct.evaluate.classification import Finding, Settings, brier_of
from fmct.evaluate.patient_scores import Scores
from fmct.metrics.bootstrap import stratified_interval
from fmct.metrics.contrasts import Contrast, holm, sign_flip_test
from fmct.metrics.delong import auroc, mean_auroc, paired_delong
from fmct.metrics.intervals import SMALLEST_SAMPLE, Interval
from fmct.metrics.proportions import mcnemar
from fmct.metrics.weighted_scores import Statistic, average_precision_of, mean_of

MACRO = "mean of all findings"


@dataclass(frozen=True)
class Comparison:
    """first − second in one metric of one target. p: by `test`, two-sided; p_holm: over the contrasts of its family.

    A family is one metric over all contrasts and findings; means over findings are a family of their own.
    """

    contrast: Contrast
    target: str
    metric: str
    difference: Interval
    test: str
    p: float | None
    p_holm: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "first": self.contrast.first,
            "second": self.contrast.second,
            "target": self.target,
            "metric": self.metric,
            "difference": self.difference.to_dict(),
            "test": self.test,
            "p": self.p,
            "p_holm": self.p_holm,
        }


def compare_models(
    findings: Mapping[str, Mapping[str, Finding]], contrasts: Sequence[Contrast], settings: Settings
) -> list[Comparison]:
    """Return every comparison of {model: {target: Finding}}, over the patients that both models have a score for."""
    results = []
    for contrast in contrasts:
        first, second = findings[contrast.first], findings[contrast.second]
        targets = [target for target in first if target in second]
        pairs = {target: _shared(first[target].scores, second[target].scores) for target in targets}
        for target, (a, b) in pairs.items():
            results += _of_target(contrast, target, a, b, settings)
        if len(targets) > 1:
            means = [mean_auroc([_ranked(pair[side]) for pair in pairs.values()]) for side in (0, 1)]
            gain = paired_delong(*means)
            results.append(Comparison(contrast, MACRO, "AUROC", gain.interval, "paired DeLong", gain.p))
    return _corrected(results)


def _of_target(contrast: Contrast, target: str, a: Scores, b: Scores, settings: Settings) -> list[Comparison]:
    gain = paired_delong(_ranked(a), _ranked(b))
    found = [Comparison(contrast, target, "AUROC", gain.interval, "paired DeLong", gain.p)]
    precision = _difference(*(average_precision_of(s.probabilities, s.labels) for s in (a, b)))
    errors = brier_of(a) - brier_of(b)
    found.append(Comparison(contrast, target, "AUPRC", _interval(precision, a, settings), "interval only", None))
    p = _flipped(errors, a, settings)
    found.append(Comparison(contrast, target, "Brier score", _interval(mean_of(errors), a, settings), "sign flips", p))
    if a.decided and b.decided:
        for metric, rows in (("sensitivity", a.labels == 1), ("specificity", a.labels == 0)):
            right = [(s.decisions == s.labels)[rows] for s in (a, b)]
            shares = right[0].astype(float) - right[1].astype(float)
            part = a.only(rows)
            if a.unit == "series":  # McNemar's pairs would be taken for independent
                interval, p = _interval(mean_of(shares), part, settings), _flipped(shares, part, settings)
                found.append(Comparison(contrast, target, metric, interval, "sign flips by patient", p))
                continue
            test = mcnemar(*right) if rows.any() else None
            found.append(
                Comparison(
                    contrast,
                    target,
                    metric,
                    _interval(mean_of(shares), part, settings),
                    f"McNemar, exact: {test.first_only} against {test.second_only}" if test else "McNemar, exact",
                    test.p if test else None,
                )
            )
    return found


def _corrected(results: Sequence[Comparison]) -> list[Comparison]:
    families: dict[tuple[str, bool], list[int]] = {}
    for place, result in enumerate(results):
        families.setdefault((result.metric, result.target == MACRO), []).append(place)
    adjusted = dict.fromkeys(range(len(results)))
    for places in families.values():
        adjusted |= dict(zip(places, holm([results[place].p for place in places]), strict=True))
    return [replace(result, p_holm=adjusted[place]) for place, result in enumerate(results)]


def _shared(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """Return both over the patients (or series) that neither failed on, in one order."""
    kept = [s.only(~s.failed) for s in (a, b)]
    keys = [list(zip(s.patients, s.series, strict=True)) for s in kept]
    both = set(keys[0]) & set(keys[1])
    first, second = (
        s.only(np.array([key in both for key in of], dtype=bool)) for s, of in zip(kept, keys, strict=True)
    )
    return first, second


def _flipped(differences: np.ndarray, scores: Scores, settings: Settings) -> float | None:
    """Return the p of sign flips over patients, each with the mean of its rows; None for too few of them."""
    names, owner = np.unique(np.asarray(scores.patients, dtype=str), return_inverse=True)
    if len(names) < SMALLEST_SAMPLE:
        return None
    return sign_flip_test(np.bincount(owner, differences) / np.bincount(owner), seed=settings.seed)


def _ranked(scores: Scores) -> Any:
    return auroc(scores.probabilities, scores.labels, scores.patients)


def _difference(first: Statistic, second: Statistic) -> Statistic:
    return lambda weights: first(weights) - second(weights)


def _interval(statistic: Statistic, scores: Scores, settings: Settings) -> Interval:
    return stratified_interval(
        statistic, scores.patients, scores.labels, resamples=settings.resamples, seed=settings.seed
    )

"""Contrasts listed before the results are seen: paired by patient, sign-flip tests, Holm's correction over the list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from fmct.errors import DataError
from fmct.metrics.intervals import SMALLEST_SAMPLE, Interval, bootstrap_interval

EXACT_UP_TO = 14  # 2¹⁴ sign patterns are all tried; more patients are sampled
RESAMPLES = 9999


@dataclass(frozen=True)
class Contrast:
    """first − second: names of two arms or models."""

    first: str
    second: str

    @classmethod
    def parse(cls, text: str) -> "Contrast":
        """Return the contrast of a text such as `dual - ct_only` (a minus with spaces around it, or a comma)."""
        for mark in (" - ", " − ", ","):
            first, found, second = text.partition(mark)
            if found and first.strip() and second.strip():
                return cls(first.strip(), second.strip())
        raise DataError(f"contrast {text!r}: expected two names such as 'dual - ct_only' or 'dual,ct_only'.")

    def __str__(self) -> str:
        """Return `first − second`."""
        return f"{self.first} − {self.second}"


@dataclass(frozen=True)
class ContrastResult:
    """Mean of first − second over patients. p: sign-flip, two-sided; p_holm: over the list; None where untested."""

    contrast: Contrast
    difference: Interval
    p: float | None
    p_holm: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "first": self.contrast.first,
            "second": self.contrast.second,
            "difference": self.difference.to_dict(),
            "p": self.p,
            "p_holm": self.p_holm,
        }


def sign_flip_test(differences: Sequence[float] | np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p that the mean of (n,) paired differences is 0, by flipping their signs (Fisher 1935).

    Every pattern of signs is tried up to n = EXACT_UP_TO; above, `resamples` of them, the observed one included.
    """
    x = np.asarray(differences, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError("sign_flip_test: expected (n,) finite differences.")
    if len(x) == 1 or not x.any():
        return 1.0  # both signs of one difference are as extreme
    exact = len(x) <= EXACT_UP_TO
    result = stats.permutation_test(
        (x,),
        lambda sample, axis: sample.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT_UP_TO if exact else resamples,
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(result.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's (1979) adjusted p values in the given order; None (not tested) stays None and does not count."""
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = highest
    return adjusted


def compare_arms(
    values: Mapping[str, Sequence[Mapping[str, float]] | Mapping[str, float]],
    contrasts: Sequence[Contrast],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> list[ContrastResult]:
    """Return one result per contrast, over the patients that both of its arms have.

    values: {arm: {patient: value}}, or a list of such, one a seed: seeds are averaged within each patient first. The
    interval is the BCa bootstrap of the paired differences. Below SMALLEST_SAMPLE patients: the value alone.
    """
    means = {arm: average_seeds([given] if isinstance(given, Mapping) else given) for arm, given in values.items()}
    results = []
    for contrast in contrasts:
        for arm in (contrast.first, contrast.second):
            if arm not in means:
                raise DataError(f"contrast {contrast}: there is no {arm!r}; the names are {', '.join(means)}.")
        first, second = means[contrast.first], means[contrast.second]
        patients = sorted(first.keys() & second.keys())
        gains = np.array([first[patient] - second[patient] for patient in patients])
        difference = bootstrap_interval(
            lambda rows, gains=gains: float(gains[rows].mean()), patients, resamples=resamples, seed=seed
        )
        tested = len(gains) >= SMALLEST_SAMPLE
        results.append(ContrastResult(contrast, difference, sign_flip_test(gains, seed=seed) if tested else None))
    adjusted = holm([result.p for result in results])
    return [
        ContrastResult(result.contrast, result.difference, result.p, p)
        for result, p in zip(results, adjusted, strict=True)
    ]


def average_seeds(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return {patient: mean over the seeds that have the patient}. Raises DataError when seeds differ in patients."""
    patients = {frozenset(values) for values in seeds}
    if len(patients) > 1:
        odd = sorted(set.union(*map(set, seeds)) - set.intersection(*map(set, seeds)))
        raise DataError(
            f"seeds: {len(odd)} patients are not in every seed ({', '.join(odd[:6])}); a mean over seeds would then "
            "compare patients of different weight. Run the missing ones, or leave them out everywhere."
        )
    return {p: float(np.mean([values[p] for values in seeds])) for p in (sorted(seeds[0]) if seeds else [])}

"""Which lesions a prediction finds: components, their scores, and what counts as a hit, in millimetres."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

CONNECTIVITIES = {6: 1, 18: 2, 26: 3}
SCORES = ("max", "top10")
HITS = ("near", "centre", "radius")
DUPLICATES = ("ignore", "fp")


@dataclass(frozen=True)
class MatchingRule:
    """What is a candidate, and what is a hit; printed in every report.

    threshold: candidates are components of the voxels at or above it. tolerance_mm: a candidate hits a lesion when one
    of its voxels is at most so far from it (0: overlaps). connectivity: 6, 18 or 26. score: a candidate's largest
    value, or the mean of its highest tenth. min_volume_mm3: smaller candidates are dropped. hit: `near` (the voxels, by
    the tolerance), `centre` (its centre is at most the tolerance from the lesion's) or `radius` (its centre is within
    the lesion's radius, that of a ball of its volume, as LUNA16 does). one_to_one: a candidate hits one lesion, the
    nearest that no higher score has hit. duplicates: a further candidate on a lesion that is hit: `ignore`, or `fp`.
    """

    threshold: float = 0.5
    tolerance_mm: float = 5.0
    connectivity: int = 26
    score: str = "max"
    min_volume_mm3: float = 0.0
    hit: str = "near"
    one_to_one: bool = False
    duplicates: str = "ignore"

    def __post_init__(self) -> None:
        if self.hit not in HITS or self.duplicates not in DUPLICATES:
            raise ValueError(f"matching rule: {self}: hit is one of {HITS}, duplicates one of {DUPLICATES}.")
        if self.connectivity not in CONNECTIVITIES or self.score not in SCORES or self.tolerance_mm < 0:
            raise ValueError(
                f"matching rule: {self} has no such connectivity (6, 18, 26), score {SCORES} or tolerance."
            )

    def __str__(self) -> str:
        """Return the rule as a sentence."""
        scored = "largest value" if self.score == "max" else "mean of its highest tenth"
        least = f", of at least {self.min_volume_mm3:g} mm³" if self.min_volume_mm3 else ""
        near = f"is within {self.tolerance_mm:g} mm of" if self.tolerance_mm else "overlaps"
        if self.hit == "centre":
            near = f"has its centre within {self.tolerance_mm:g} mm of that of"
        elif self.hit == "radius":
            near = "has its centre within the radius of"
        each = "Each lesion counts once; a second candidate on one is neither hit nor false positive. "
        if self.duplicates == "fp":
            each = "Each lesion counts once; a second candidate on one is a false positive. "
        if self.one_to_one:
            each += "A candidate hits one lesion, the nearest that no higher score has hit. "
        return (
            f"A candidate is a {self.connectivity}-connected component of values ≥ {self.threshold:g}{least}; its "
            f"score is its {scored}. It hits every lesion ({self.connectivity}-connected component of the reference) "
            f"that it {near}. {each}Touching an ignore region only: neither."
        )


@dataclass(frozen=True)
class Candidate:
    """One predicted component. hits: numbers of the lesions it hits; ignored: it hits none, but an ignore region."""

    score: float
    volume_mm3: float
    centre: tuple[float, float, float]
    hits: tuple[int, ...]
    ignored: bool


@dataclass(frozen=True)
class MatchedScan:
    """One scan: volumes of its reference lesions, and its candidates."""

    patient: str
    scan: str
    lesions_mm3: tuple[float, ...]
    candidates: tuple[Candidate, ...]

    def best_scores(self) -> list[float]:
        """Return, for each lesion, the highest score of a candidate that hits it; −inf where none does."""
        best = [-np.inf] * len(self.lesions_mm3)
        for candidate in self.candidates:
            for number in candidate.hits:
                best[number] = max(best[number], candidate.score)
        return best

    def false_positives(self) -> list[float]:
        """Return the scores of the candidates that hit nothing and are not ignored."""
        return [c.score for c in self.candidates if not c.hits and not c.ignored]


def match_lesions(
    values: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    rule: MatchingRule,
    *,
    patient: str = "",
    scan: str = "",
    ignore: np.ndarray | None = None,
) -> MatchedScan:
    """Return the candidates of `values` (D, H, W), probabilities or a mask, matched to a bool reference.

    ignore: bool regions (doubtful lesions, mimics): a candidate that hits no lesion but touches one of them, by the
    same tolerance, is neither a hit nor a false positive.
    """
    structure = ndimage.generate_binary_structure(3, CONNECTIVITIES[rule.connectivity])
    voxel_mm3 = float(np.prod(spacing_mm))
    parts, _ = _components(values >= rule.threshold, structure)
    lesions, total = _components(np.asarray(reference, dtype=bool), structure)
    hits = _hits(parts, lesions, spacing_mm, rule)
    doubtful: set[int] = set()
    if ignore is not None and ignore.any():
        box = ndimage.find_objects(np.asarray(ignore, dtype=np.int8))[0]
        doubtful = _touched(parts, np.asarray(ignore, dtype=bool), box, spacing_mm, rule.tolerance_mm)
    candidates = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        inside = parts[box] == number
        volume = float(inside.sum()) * voxel_mm3
        if volume < rule.min_volume_mm3:
            continue
        centre = [float(s.start + m) for s, m in zip(box, np.argwhere(inside).mean(axis=0), strict=True)]
        found = tuple(hits.get(number, ()))
        score = _score(values[box][inside], rule.score)
        candidates.append(Candidate(score, volume, _triple(centre), found, not found and number in doubtful))
    sizes = np.bincount(lesions.ravel(), minlength=total + 1)[1:] * voxel_mm3
    if rule.one_to_one or rule.duplicates == "fp":
        candidates = _assigned(candidates, _centres(lesions), spacing_mm, rule)
    return MatchedScan(patient, scan, tuple(map(float, sizes)), tuple(candidates))


def _hits(
    parts: np.ndarray, lesions: np.ndarray, spacing_mm: Sequence[float], rule: MatchingRule
) -> dict[int, list[int]]:
    """Return {candidate's number: lesions that it hits, from 0}, before any assignment."""
    hits: dict[int, list[int]] = {}
    if rule.hit == "near":
        for number, box in enumerate(ndimage.find_objects(lesions)):
            for part in _touched(parts, lesions == number + 1, box, spacing_mm, rule.tolerance_mm):
                hits.setdefault(part, []).append(number)
        return hits
    sizes = np.bincount(lesions.ravel())[1:] * float(np.prod(spacing_mm))
    reach = np.cbrt(3 * sizes / (4 * np.pi)) if rule.hit == "radius" else np.full(len(sizes), rule.tolerance_mm)
    ours, theirs = _centres(parts), _centres(lesions)
    for part, place in enumerate(ours, start=1):
        apart = _apart(place, theirs, spacing_mm)
        hits[part] = np.flatnonzero(apart <= reach + 1e-6).tolist()
    return hits


def _assigned(
    candidates: Sequence[Candidate], lesions: np.ndarray, spacing_mm: Sequence[float], rule: MatchingRule
) -> list[Candidate]:
    """Return the candidates, in their order, with what each keeps of its hits: higher scores choose first."""
    taken: set[int] = set()
    kept = list(candidates)
    for number in sorted(range(len(kept)), key=lambda n: (-kept[n].score, kept[n].centre)):
        candidate = kept[number]
        free = [lesion for lesion in candidate.hits if lesion not in taken]
        if free and rule.one_to_one:
            apart = _apart(np.asarray(candidate.centre), lesions[free], spacing_mm)
            free = [free[int(np.argmin(apart))]]
            kept[number] = replace(candidate, hits=tuple(free))
        elif candidate.hits and not free and (rule.one_to_one or rule.duplicates == "fp"):
            kept[number] = replace(candidate, hits=(), ignored=rule.duplicates == "ignore")
        taken |= set(free)
    return kept


def _centres(numbers: np.ndarray) -> np.ndarray:
    """Return the (N, 3) voxel means of the components 1 … N."""
    boxes = ndimage.find_objects(numbers)
    found = [
        np.argwhere(numbers[box] == number).mean(axis=0) + [s.start for s in box]
        for number, box in enumerate(boxes, start=1)
    ]
    return np.array(found, dtype=np.float64).reshape(-1, 3)


def _apart(place: np.ndarray, others: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the mm from a voxel place to (N, 3) others."""
    return np.sqrt((((others - place) * np.asarray(spacing_mm)) ** 2).sum(axis=1))


def _components(inside: np.ndarray, structure: np.ndarray) -> tuple[np.ndarray, int]:
    """Return (numbers from 1 on, how many)."""
    found: Any = ndimage.label(inside, structure)
    return found[0], int(found[1])


def _touched(
    parts: np.ndarray, region: np.ndarray, box: tuple[slice, ...], spacing_mm: Sequence[float], tolerance_mm: float
) -> set[int]:
    """Return the numbers of the components that come within the tolerance of `region`, which lies in `box`."""
    margin = [int(np.ceil(tolerance_mm / step)) for step in spacing_mm]
    wide = tuple(
        slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(box, margin, parts.shape, strict=True)
    )
    near = region[wide]
    if tolerance_mm > 0:
        distance = np.asarray(ndimage.distance_transform_edt(~near, sampling=spacing_mm))
        near = distance <= tolerance_mm + 1e-6
    return set(np.unique(parts[wide][near]).tolist()) - {0}


def _score(values: np.ndarray, kind: str) -> float:
    if kind == "max":
        return float(values.max())
    top = np.sort(values)[-max(1, int(np.ceil(len(values) / 10))) :]
    return float(top.mean())


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    z, y, x = values
    return (z, y, x)

"""Which candidates stay: rules in millimetres on the 3D shape, each with its own switch, each verdict with reasons.

In the published system this step, not the network, takes the false positives from some fifty to about two a subject.
There it acts in voxels and on single slices, which drops every cortical lesion and each one with an odd slice; that is
the preset `CleanupRules.paper()`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from fmct.errors import ConfigError, DataError
from fmct.lesions.shape import eccentricity, shape_of, solidity

_AROUND = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class CleanupRules:
    """Limits that a candidate has to keep; null switches a rule off. All limits are included.

    min_score: of the scores given. min_voxels; min_volume_mm3, max_volume_mm3: of a ball 1.5 and 10 mm wide.
    min_sphericity, max_elongation: see fmct.lesions.shape. min_brain_share: of its voxels inside the brain mask.
    min_depth_mm: of its centre below the brain's surface (off: cortical lesions count). max_vessel_contacts: separate
    places where it goes on as a vessel; max_vessel_share: of its own voxels that are vessel; both where vessels are
    given. min_depth_voxels, slice_eccentricity with slice_solidity: the paper's: depth in voxels, and no axial slice
    may be more eccentric and at the same time less solid than these.
    """

    min_score: float | None = None
    min_voxels: int | None = 2
    min_volume_mm3: float | None = 1.8
    max_volume_mm3: float | None = 525.0
    min_sphericity: float | None = 0.4
    max_elongation: float | None = 2.5
    min_brain_share: float | None = 0.5
    min_depth_mm: float | None = None
    max_vessel_contacts: int | None = 1
    max_vessel_share: float | None = 0.5
    min_depth_voxels: float | None = None
    slice_eccentricity: float | None = None
    slice_solidity: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"clean.{name}: expected a number that is not negative, or null (off); got {value}.")
        if (self.slice_eccentricity is None) != (self.slice_solidity is None):
            raise ConfigError("clean: slice_eccentricity and slice_solidity are one rule: give both or neither.")

    @classmethod
    def paper(cls) -> "CleanupRules":
        """Return the published rules: single slices, two voxels, eight voxels deep; nothing in millimetres."""
        off = dict.fromkeys(cls.__dataclass_fields__)
        return cls(
            **{**off, "min_voxels": 2, "min_depth_voxels": 8.0, "slice_eccentricity": 0.4, "slice_solidity": 0.5}
        )


@dataclass(frozen=True)
class Verdict:
    """What became of one candidate. label: its value in the label map. reason: why it went, "" for one that stays.

    measures: what the rules looked at, by name; mm and mm³ where the name says so.
    """

    label: int
    kept: bool
    reason: str
    measures: Mapping[str, float] = field(default_factory=dict)


def clean(
    labels: np.ndarray,
    brain_mask: np.ndarray,
    spacing_mm: Sequence[float],
    rules: CleanupRules | None = None,
    *,
    scores: Mapping[int, float] | None = None,
    vessels: np.ndarray | None = None,
) -> tuple[np.ndarray, list[Verdict]]:
    """Return (label map without the candidates that fell, a verdict for each of them in the order of their labels).

    labels: (D, H, W) integers, 0 is background, a candidate is all voxels of one value; axial slices lie along the
    first axis. brain_mask, vessels: bool, of that shape. scores: {label: score}. A candidate stays or falls as a whole,
    and no verdict depends on another candidate, so that cleaning twice changes nothing. Raises DataError for a mask on
    another grid, an empty brain mask, labels that are no integers, and a label without a score where scores are given.
    """
    rules = rules or CleanupRules()
    _check(labels, brain_mask, vessels, scores)
    kept, verdicts = labels.copy(), []
    depth = _depth_below(brain_mask, rules, spacing_mm)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        own = labels[box] == number
        index = np.argwhere(own) + [s.start for s in box]
        measures = _measures(index, brain_mask, spacing_mm, rules, depth)
        if scores is not None:
            measures["score"] = _score_of(number, scores)
        if vessels is not None:
            measures |= _vessel_measures(own, box, vessels)
        reason = "; ".join(_faults(measures, rules))
        verdicts.append(Verdict(number, not reason, reason, measures))
        if reason:
            kept[box][own] = 0
    return kept, verdicts


def _check(
    labels: np.ndarray, brain_mask: np.ndarray, vessels: np.ndarray | None, scores: Mapping[int, float] | None
) -> None:
    if labels.dtype.kind not in "iu" or labels.ndim != 3:
        raise DataError(f"clean: expected a label map (D, H, W) of integers; got {labels.shape} of {labels.dtype}.")
    for name, other in (("brain mask", brain_mask), ("vessel mask", vessels)):
        if other is not None and other.shape != labels.shape:
            raise DataError(f"clean: the {name} has {other.shape} voxels, the label map {labels.shape}: another grid.")
    if not brain_mask.any():
        raise DataError("clean: the brain mask is empty. Give one that covers the brain (see fmct.lesions.brain_mask).")


def _score_of(label: int, scores: Mapping[int, float]) -> float:
    if label not in scores:
        raise DataError(f"clean: candidate {label} has no score; scores name {len(scores)} candidates.")
    return float(scores[label])


def _measures(
    index: np.ndarray, brain_mask: np.ndarray, spacing_mm: Sequence[float], rules: CleanupRules, depth: "_Depth"
) -> dict[str, float]:
    shape = shape_of(index, spacing_mm)
    measures = {
        "voxels": float(shape.voxels),
        "volume_mm3": shape.volume_mm3,
        "sphericity": shape.sphericity,
        "elongation": shape.elongation,
        "length_mm": shape.length_mm,
        "brain_share": float(brain_mask[tuple(index.T)].mean()),
        **depth(shape.centre),
    }
    if rules.slice_eccentricity is not None and rules.slice_solidity is not None:
        measures["odd_slices"] = float(_odd_slices(index, rules.slice_eccentricity, rules.slice_solidity))
    return measures


_Depth = Callable[[Sequence[float]], dict[str, float]]


def _depth_below(brain_mask: np.ndarray, rules: CleanupRules, spacing_mm: Sequence[float]) -> _Depth:
    """Return what measures the depth of a place below the brain's surface, in mm and voxels, as far as rules ask.

    Depth is the distance to the nearest voxel that is not brain; where the scan cuts the brain off is no surface. Only
    voxels beside the brain can be nearest, so they are all that is searched.
    """
    sides = {
        name: np.asarray(unit, dtype=np.float64)
        for name, unit, rule in (
            ("depth_mm", spacing_mm, rules.min_depth_mm),
            ("depth_voxels", (1.0, 1.0, 1.0), rules.min_depth_voxels),
        )
        if rule is not None
    }
    if not sides:
        return lambda centre: {}
    surface = np.argwhere(_beside(brain_mask))
    trees = {name: KDTree(surface * unit) if len(surface) else None for name, unit in sides.items()}

    def _measured(centre: Sequence[float]) -> dict[str, float]:
        place = np.rint(centre)
        if not brain_mask[tuple(place.astype(int))]:
            return dict.fromkeys(sides, 0.0)
        return {
            name: math.inf if tree is None else float(tree.query(place * sides[name])[0])
            for name, tree in trees.items()
        }

    return _measured


def _beside(mask: np.ndarray) -> np.ndarray:
    """Return the voxels outside a mask that share a face with it."""
    near = np.zeros_like(mask)
    for axis in range(mask.ndim):
        low, high = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        near[tuple(low)] |= mask[tuple(high)]
        near[tuple(high)] |= mask[tuple(low)]
    return near & ~mask


def _odd_slices(index: np.ndarray, most_eccentric: float, least_solid: float) -> int:
    """Return how many axial regions (8-connected) of a candidate are both too eccentric and not solid enough."""
    odd = 0
    for number in np.unique(index[:, 0]):
        pixels = index[index[:, 0] == number, 1:]
        low = pixels.min(axis=0)
        plane = np.zeros(pixels.max(axis=0) - low + 1, dtype=bool)
        plane[tuple((pixels - low).T)] = True
        regions = np.zeros(plane.shape, dtype=np.int32)
        ndimage.label(plane, structure=np.ones((3, 3)), output=regions)
        for region in range(1, int(regions.max()) + 1):
            part = np.argwhere(regions == region)
            odd += eccentricity(part) > most_eccentric and solidity(part) < least_solid
    return odd


def _vessel_measures(own: np.ndarray, box: tuple[slice, ...], vessels: np.ndarray) -> dict[str, float]:
    """Return how much of a candidate is vessel, and at how many separate places of its rim a vessel goes on."""
    wide = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    within = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))
    body = np.zeros([min(w.stop, n) - w.start for w, n in zip(wide, vessels.shape, strict=True)], dtype=bool)
    body[within] = own
    rim = ndimage.binary_dilation(body, _AROUND) & ~body & vessels[wide]
    patches = np.zeros(rim.shape, dtype=np.int32)
    ndimage.label(rim, structure=_AROUND, output=patches)
    return {"vessel_share": float(vessels[box][own].mean()), "vessel_contacts": float(patches.max())}


def _faults(measures: Mapping[str, float], rules: CleanupRules) -> Iterator[str]:
    """Yield why a candidate falls, rule by rule, with the number and its limit."""
    for name, measure, sense, unit in _LIMITS:
        limit, value = getattr(rules, name), measures.get(measure)
        if limit is None or value is None:
            continue
        if (value < limit) if sense == "under" else (value > limit):
            yield f"{name}: {measure} {value:.3g}{unit} is {sense} {limit:g}{unit}"
    if measures.get("odd_slices"):
        yield (
            f"slice_eccentricity: {measures['odd_slices']:.0f} slices are more eccentric than "
            f"{rules.slice_eccentricity:g} and less solid than {rules.slice_solidity:g}"
        )


_LIMITS = (
    ("min_score", "score", "under", ""),
    ("min_voxels", "voxels", "under", ""),
    ("min_volume_mm3", "volume_mm3", "under", " mm³"),
    ("max_volume_mm3", "volume_mm3", "over", " mm³"),
    ("min_sphericity", "sphericity", "under", ""),
    ("max_elongation", "elongation", "over", ""),
    ("min_brain_share", "brain_share", "under", ""),
    ("min_depth_mm", "depth_mm", "under", " mm"),
    ("max_vessel_contacts", "vessel_contacts", "over", ""),
    ("max_vessel_share", "vessel_share", "over", ""),
    ("min_depth_voxels", "depth_voxels", "under", " voxels"),
)

"""The pretraining hazard: do an encoder's frozen features still tell a vessel of 200 HU from one of 40?

Self-distillation makes features equal that its views show as equal. Views that shift HU by hundreds teach that contrast
does not matter. The test is made of pairs of crops of really enhanced scans. In one crop of a pair the vessels (largest
component of 130 to 600 HU, bone removed) are set to 40 HU with noise. In the other the vessels stay, and as many voxels
of other soft tissue are lowered by as much, so that both have the same mean. A linear probe is fitted on all series but
one and tells the two apart on that one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from fmct import randomness
from fmct.contrast.morphology import grown, near, pieces
from fmct.errors import DataError
from fmct.metrics.delong import auroc
from fmct.volume import Volume

VESSEL_HU = (130.0, 600.0)
BLOOD_HU, NOISE_HU = 40.0, 12.0
MIN_SHARE, MAX_SHARE = 0.01, 0.35
"""Of a crop's voxels that are vessel: fewer show nothing, more leave no soft tissue to lower."""
TARGET, FALL = 0.95, 0.2
_UNEVEN, _DENSE_SHELL, _SHELL_MM, _SMALLEST_MM3 = 0.14, 0.25, 7.0, 2000.0
_TRIES = 60


@dataclass(frozen=True)
class Pair:
    """Two crops of one place. suppressed: vessels at 40 HU; control: vessels as they are, other tissue lowered."""

    series: str
    suppressed: Volume
    control: Volume


def vessel_mask(volume: Volume) -> np.ndarray:
    """Return the vessels of an enhanced CT, (D, H, W) bool. Raises DataError where there is no such component.

    Blood is even where spongy bone and bowel are not: components are made of what varies little about each voxel, and
    one in a denser shell is bone. The largest that is left grows back to its walls.
    """
    hu = np.clip(volume.voxels, -200, 1200).astype(np.float32)
    step = np.maximum(np.rint(1.6 / volume.spacing).astype(int), 1)  # a finer grid finds nothing more, and takes longer
    spacing = volume.spacing * step
    smooth = _smooth(hu, volume.spacing)
    spread = np.sqrt(np.maximum(_smooth(hu**2, volume.spacing) - smooth**2, 0))
    smooth, spread = (values[:: step[0], :: step[1], :: step[2]] for values in (smooth, spread))
    even = spread < np.maximum(35.0, _UNEVEN * smooth)
    blood = (smooth > VESSEL_HU[0]) & (smooth < VESSEL_HU[1]) & even
    labels, counts = pieces(np.asarray(ndimage.binary_opening(blood)))
    sizes = counts * float(spacing.prod())
    for number in np.argsort(-sizes)[:12] + 1:
        if sizes[number - 1] < _SMALLEST_MM3:
            break
        piece = labels == number
        shell = smooth[grown(piece, max(2, round(_SHELL_MM / spacing[1]))) & ~grown(piece)]
        if (shell > max(300.0, 1.35 * float(smooth[piece].mean()))).mean() < _DENSE_SHELL:
            mean = float(smooth[piece].mean())
            inside = (smooth > 0.5 * (BLOOD_HU + mean)) & (smooth < 1.4 * mean)
            whole = grown(grown(piece, max(2, round(5 / spacing[1])), within=inside))
            fine = whole.repeat(step[0], 0).repeat(step[1], 1).repeat(step[2], 2)
            return fine[: hu.shape[0], : hu.shape[1], : hu.shape[2]] & (hu > 0.5 * (BLOOD_HU + VESSEL_HU[0]))
    raise DataError("no vessel of 2 ml between 130 and 600 HU: is this scan enhanced?")


def _smooth(values: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(values, (0, *(2.0 / spacing_mm[1:])))


def make_pairs(
    series: str, volume: Volume, *, side_mm: Sequence[float], count: int, seed: int, mask: np.ndarray | None = None
) -> list[Pair]:
    """Return `count` pairs of crops of `side_mm` (z, y, x) at seeded places of an enhanced series where vessels are.

    A side is cut to the series' extent. Raises DataError when too few places show vessels.
    """
    vessels = vessel_mask(volume) if mask is None else mask
    sides = np.minimum(np.rint(np.asarray(side_mm) / volume.spacing).astype(int), volume.shape)
    places = np.argwhere(vessels)
    pairs: list[Pair] = []
    for number in range(count * _TRIES):
        random = randomness.generator(seed, "hazard", series, number)
        centre = places[int(random.integers(len(places)))] + random.uniform(-0.3, 0.3, 3) * sides
        start = np.clip(np.rint(centre - sides / 2).astype(int), 0, np.asarray(volume.shape) - sides)
        box = tuple(slice(int(a), int(a + n)) for a, n in zip(start, sides, strict=True))
        crop, inside = volume.voxels[box].astype(np.float32), vessels[box]
        if not MIN_SHARE <= inside.mean() <= MAX_SHARE:
            continue
        edited = edit(crop, inside, volume.spacing, random)
        if edited is not None:
            affine = volume.affine.copy()
            affine[:3, 3] = volume.world(start)
            pairs.append(Pair(series, *(Volume(voxels, affine) for voxels in edited)))
        if len(pairs) == count:
            return pairs
    raise DataError(f"{series}: only {len(pairs)} of {count} crops show vessels; take smaller crops or fewer.")


def edit(
    hu: np.ndarray, vessels: np.ndarray, spacing_mm: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (suppressed, control), int16 (D, H, W) of equal mean, None where there is too little soft tissue.

    The lowered tissue has as many voxels as the vessels, in compact pieces that a smooth random field chooses.
    """
    count = int(vessels.sum())
    soft = (hu > -30) & (hu < 130) & ~near(vessels, spacing_mm, 3.0)
    if soft.sum() < 1.5 * count or count == 0:
        return None
    noise = random.normal(0, NOISE_HU, hu.shape)
    suppressed = np.where(vessels, BLOOD_HU + noise, hu)
    field = ndimage.gaussian_filter(random.standard_normal(hu.shape), 6.0 / spacing_mm)
    chosen = np.zeros(hu.shape, dtype=bool)
    chosen.ravel()[np.argsort(np.where(soft, field, -np.inf), axis=None)[-count:]] = True
    drop = float((hu - suppressed)[vessels].mean())
    control = np.where(chosen, hu - drop, hu)
    rounded = np.rint(suppressed), np.rint(control)
    left = int(rounded[0].sum() - rounded[1].sum())  # whole HU that rounding left between the sums
    at = np.flatnonzero(chosen)[: abs(left)]
    rounded[1].ravel()[at] += np.sign(left)
    low, high = (np.clip(voxels, -1024, 3071).astype(np.int16) for voxels in rounded)
    return low, high


def probe_pairs(features: Mapping[str, tuple[np.ndarray, np.ndarray]], *, penalty: float = 1.0) -> dict[str, Any]:
    """Return what a linear probe finds, each series tested by a probe of the others.

    features: {series: (suppressed, control)}, each (pairs, E). auroc: mean over series; by_series: {series: AUROC};
    ordered: share of pairs whose control scores higher.
    """
    from sklearn.linear_model import LogisticRegression

    if len(features) < 2:
        raise DataError("the hazard probe needs at least two enhanced series: folds are by series.")
    by_series, ordered = {}, []
    for held, (low, high) in features.items():
        rest = [pair for name, pair in features.items() if name != held]
        x = np.concatenate([np.concatenate(pair) for pair in rest]).astype(np.float64)
        y = np.concatenate([np.repeat([0, 1], [len(a), len(b)]) for a, b in rest])
        mean, spread = x.mean(axis=0), x.std(axis=0)
        spread = np.where(spread > 1e-9, spread, 1.0)
        model = LogisticRegression(C=penalty, max_iter=2000).fit((x - mean) / spread, y)
        scores = [model.decision_function((part - mean) / spread) for part in (low, high)]
        found = auroc(np.concatenate(scores), np.repeat([0, 1], [len(low), len(high)]))
        by_series[held] = float(found.value)
        ordered.append(float((scores[1] > scores[0]).mean() + 0.5 * (scores[1] == scores[0]).mean()))
    return {
        "auroc": float(np.mean(list(by_series.values()))),
        "by_series": by_series,
        "ordered": float(np.mean(ordered)),
    }


def features_of(
    pairs: Sequence[Pair], embed: Callable[[Volume], np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {series: (suppressed, control)} features, each (pairs, E), of `embed`, which takes a crop."""
    names = list(dict.fromkeys(pair.series for pair in pairs))
    return {
        name: (
            np.stack([embed(pair.suppressed) for pair in pairs if pair.series == name]),
            np.stack([embed(pair.control) for pair in pairs if pair.series == name]),
        )
        for name in names
    }


def mean_hu(volume: Volume) -> np.ndarray:
    """Return the baseline's one feature: a crop's mean HU, which the pairs were made to share."""
    return np.array([volume.voxels.mean()])


def verdict(aurocs: Mapping[str, float]) -> list[str]:
    """Return what the test says, a line a rule, of AUROC for `default`, `jitter`, `random` and `mean HU`."""
    default, jitter = aurocs["default"], aurocs["jitter"]
    fall = default - jitter
    if fall < FALL:
        return [
            f"THE TEST SAYS NOTHING: with ±300 HU jitter the probe falls by {fall:.3f} from {default:.3f}; a fall of "
            f"{FALL} is needed to know that it can fail."
        ]
    beats = {name: default - aurocs[name] for name in ("random", "mean HU")}
    told = [f"jitter of ±300 HU costs {fall:.3f}: the test can fail."]
    told += [
        f"default views {'beat' if gain > 0 else 'DO NOT BEAT'} {name} ({gain:+.3f})." for name, gain in beats.items()
    ]
    reached = default >= TARGET
    told.append(f"default views: AUROC {default:.3f}, target {TARGET}: {'reached' if reached else 'NOT REACHED'}.")
    return told

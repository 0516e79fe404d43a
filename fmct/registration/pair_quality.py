"""Is a registered pair good enough to learn from: lungs, vessels, the deformation and the time between the scans.

A pair is accepted, taken with a smaller weight, or dropped; each with its reasons. Dropping never costs the fixed
scan nor its label. Thresholds and time tiers are this project's choice, in keeping with published practice on
non-contrast CT and CTPA pairs (tiers of 1 h and 12 h; a good registration leaves a vessel Dice near 0.8).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np
from scipy import ndimage

from fmct.errors import ConfigError, DataError
from fmct.registration.warping import distance_mm
from fmct.volume import Volume

ACCEPT, DOWN_WEIGHT, DROP = "accept", "down-weight", "drop"
AIR_BELOW_HU, VESSELS_ABOVE_HU = -500.0, -500.0
_CLOSING_MM = 12.0  # wider than any vessel inside the lungs but the hila
_WALL_MM = 4.0  # the lungs' rim: what lies there is wall, and a misfit of it is in the lung Dice already
_MIN_LUNG_ML = 50.0
_SMOOTH_MM = 1.5  # against noise; at most .7 voxels, so that a coarse grid's walls stay


@dataclass(frozen=True)
class PairPolicy:
    """Which pairs are taken, and with what weight.

    min_lung_dice, min_vessel_dice: below them the registration failed. A smallest Jacobian determinant of at most
    min_jacobian in the lungs (folding) drops the pair. tier_minutes, tier_weights: the first tier that holds the
    interval gives the weight; beyond the last one the pair is dropped. unknown_interval_weight: where no interval is
    known. min_overlap: share of the fixed scan that the paired one must cover. min_enhancement_hu: a CT paired for its
    contrast must reach this median in the heart or pulmonary trunk. most_minutes_before: how long before the fixed scan
    the paired one may lie (clocks disagree); a contrast agent given earlier is still in the fixed scan.
    """

    min_lung_dice: float = 0.8
    min_vessel_dice: float = 0.6
    min_jacobian: float = 0.0
    tier_minutes: list[float] = field(default_factory=lambda: [60.0, 720.0, 1440.0])
    tier_weights: list[float] = field(default_factory=lambda: [1.0, 0.6, 0.3])
    unknown_interval_weight: float = 0.3
    min_overlap: float = 0.5
    min_enhancement_hu: float = 120.0
    most_minutes_before: float = 10.0

    def __post_init__(self) -> None:
        tiers, weights = self.tier_minutes, self.tier_weights
        rising = all(a < b for a, b in pairwise(tiers))
        if not tiers or len(tiers) != len(weights) or not rising or min(*weights, self.unknown_interval_weight) < 0:
            raise ConfigError(
                f"tier_minutes={tiers}, tier_weights={weights}: expected rising minutes and as many weights ≥ 0."
            )


@dataclass(frozen=True)
class PairQuality:
    """What is known of a pair; None is not measured and not judged.

    minutes: paired scan's time minus the fixed one's. overlap: share of the fixed scan inside the paired one's field
    of view. heart_hu: median of the paired CT in the heart or pulmonary trunk. same_examination: both series come from
    one examination in one frame of reference, such as PET/CT, so that no interval is needed. identical: equal voxels.
    failure: why the registration gave no result, "" when it did.
    """

    lung_dice: float | None = None
    vessel_dice: float | None = None
    min_jacobian: float | None = None
    minutes: float | None = None
    overlap: float | None = None
    heart_hu: float | None = None
    same_examination: bool = False
    identical: bool = False
    failure: str = ""

    def facts(self) -> dict[str, float | bool | str | None]:
        """Return the fields as plain values, for tables."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """accept, down-weight or drop; the pair's weight (0 when dropped) and the reasons, empty when accepted.

    aligned: false where it was dropped because points of one scan cannot be trusted to lie where they do in the other;
    a mask that was carried over falls then. It stays where the paired scan merely teaches nothing.
    """

    decision: str
    weight: float
    reasons: tuple[str, ...] = ()
    aligned: bool = True


def judge(quality: PairQuality, policy: PairPolicy | None = None) -> Verdict:
    """Return what becomes of a pair of this quality: any reason to drop it drops it, else the interval weighs it."""
    policy = policy or PairPolicy()
    misfits, blanks = _misfits(quality, policy), _blanks(quality, policy)
    weight, remark = _interval_weight(quality, policy)
    if weight == 0:
        misfits.append(remark)
    if misfits or blanks:
        return Verdict(DROP, 0.0, (*misfits, *blanks), aligned=not misfits)
    return Verdict(ACCEPT, 1.0) if weight >= 1 else Verdict(DOWN_WEIGHT, weight, (remark,))


def _misfits(quality: PairQuality, policy: PairPolicy) -> list[str]:
    """Return why the two scans cannot be laid over each other."""
    faults = [quality.failure] if quality.failure else []
    for name, value, least in (
        ("lung Dice", quality.lung_dice, policy.min_lung_dice),
        ("vessel Dice", quality.vessel_dice, policy.min_vessel_dice),
        ("overlap of the fields of view", quality.overlap, policy.min_overlap),
    ):
        if value is not None and not value >= least:
            faults.append(f"{name} {value:.2f} is below {least:g}")
    if quality.min_jacobian is not None and not quality.min_jacobian > policy.min_jacobian:
        faults.append(f"the deformation folds: smallest Jacobian determinant {quality.min_jacobian:.2f}")
    return faults


def _blanks(quality: PairQuality, policy: PairPolicy) -> list[str]:
    """Return why the paired scan has nothing to teach."""
    faults = ["both series hold the same voxels"] if quality.identical else []
    if quality.heart_hu is not None and quality.heart_hu < policy.min_enhancement_hu:
        faults.append(
            f"no contrast: the heart's median is {quality.heart_hu:.0f} HU, below {policy.min_enhancement_hu:g} HU"
        )
    return faults


def _interval_weight(quality: PairQuality, policy: PairPolicy) -> tuple[float, str]:
    if quality.minutes is None:
        if quality.same_examination:
            return 1.0, ""
        return policy.unknown_interval_weight, "the interval between the scans is unknown"
    for limit, weight in zip(policy.tier_minutes, policy.tier_weights, strict=True):
        if abs(quality.minutes) <= limit:
            return weight, f"{abs(quality.minutes):.0f} minutes between the scans"
    most = policy.tier_minutes[-1]
    return 0.0, f"{abs(quality.minutes):.0f} minutes between the scans are more than {most:g}"


def dice(a: np.ndarray, b: np.ndarray, inside: np.ndarray | None = None) -> float | None:
    """Return the Dice overlap of two masks (inside: where to count), None when both are empty there."""
    a, b = a.astype(bool), b.astype(bool)
    if inside is not None:
        a, b = a & inside, b & inside
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None


def lungs(volume: Volume) -> np.ndarray | None:
    """Return the lungs of a chest CT, (D, H, W) bool, their vessels filled in; None when there are none.

    Lungs are air below −500 HU that does not reach the outside through a slice's border; trachea and bowel gas of
    less than 50 ml a piece are left out. Axes as the volume's, of any orientation.
    """
    air = (
        ndimage.gaussian_filter(volume.voxels.astype(np.float32), np.minimum(0.7, _SMOOTH_MM / volume.spacing))
        < AIR_BELOW_HU
    )
    vertical = _axis_towards(volume, "SI")
    labels = np.empty(air.shape, dtype=np.int32)
    count = int(ndimage.label(air, output=labels))  # type: ignore[arg-type]
    border = np.zeros(air.shape, dtype=bool)
    for axis in range(3):
        if axis != vertical:
            for end in (0, -1):
                border[(slice(None),) * axis + (end,)] = True
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * float(np.prod(volume.spacing)) / 1000
    keep = sizes >= _MIN_LUNG_ML
    keep[np.unique(labels[border])] = False
    keep[0] = False
    found = keep[labels]
    return _closed(found, volume.spacing, _CLOSING_MM / 2) if found.any() else None


def lung_vessels(volume: Volume, lung: np.ndarray) -> np.ndarray:
    """Return the vessels inside the lungs, (D, H, W) bool: denser than −500 HU, 4 mm (and a voxel) off the
    lungs' rim.

    In aerated lung a vessel stands out with and without contrast alike, so that both phases are measured by one rule.
    """
    rim = max(_WALL_MM, 1.1 * float(volume.spacing.max()))
    return (distance_mm(lung, volume.spacing) > rim) & (volume.voxels > VESSELS_ABOVE_HU)


def min_jacobian(field_mm: np.ndarray, affine: np.ndarray, inside: np.ndarray | None = None) -> float:
    """Return the smallest determinant of ∂(p + u)/∂p of a displacement field, over `inside` or everywhere.

    field_mm: (D, H, W, 3) RAS mm on the grid of `affine`, voxel (z, y, x) → RAS mm. 1 is no change of volume, 0 or
    less is folding. Raises DataError for a grid of fewer than two voxels along an axis.
    """
    if min(field_mm.shape[:3]) < 2:
        raise DataError(f"a Jacobian needs at least two voxels along each axis; got the grid {field_mm.shape[:3]}.")
    to_index = np.linalg.inv(affine[:3, :3])
    # ∂u_world/∂world = ∂u_world/∂index · ∂index/∂world
    by_index = np.stack(list(np.gradient(field_mm.astype(np.float64), axis=(0, 1, 2))), axis=-1)
    determinants = np.linalg.det(np.eye(3) + by_index @ to_index)
    return float(determinants[inside].min() if inside is not None and inside.any() else determinants.min())


def measure(
    fixed: Volume,
    warped: Volume,
    *,
    valid: np.ndarray | None = None,
    field_mm: np.ndarray | None = None,
    masks: Mapping[str, np.ndarray] | None = None,
    minutes: float | None = None,
    same_examination: bool = False,
) -> PairQuality:
    """Return the quality of `warped` (on the grid of `fixed`).

    valid: (D, H, W) bool, inside both fields of view. field_mm: the deformation. masks: better ones than the built-in
    rules where they exist, on this grid: lungs, warped_lungs, vessels, warped_vessels, and heart (or pulmonary trunk).
    Where one of the two is no chest CT, the lung and vessel Dice are not measured. Raises DataError for unlike grids.
    """
    if fixed.shape != warped.shape:
        raise DataError(f"pair quality: both volumes must lie on one grid; got {fixed.shape} and {warped.shape}.")
    masks = masks or {}
    inside = np.ones(fixed.shape, dtype=bool) if valid is None else valid.astype(bool)
    chest = fixed.modality == warped.modality == "CT"
    lung = masks.get("lungs", lungs(fixed) if chest else None)
    warped_lung = masks.get("warped_lungs", lungs(warped) if chest else None)
    lung_dice = vessel_dice = None
    if lung is not None:
        lung_dice = dice(lung, warped_lung if warped_lung is not None else np.zeros_like(lung), inside)
    if lung is not None and warped_lung is not None:
        # Both phases are looked at inside the same lung: what lies outside one of them is counted by the lung Dice.
        shared = lung & warped_lung & inside
        vessels = masks.get("vessels", lung_vessels(fixed, shared))
        warped_vessels = masks.get("warped_vessels", lung_vessels(warped, shared))
        vessel_dice = dice(vessels, warped_vessels, inside)
    heart = masks.get("heart")
    seen = heart.astype(bool) & inside if heart is not None else None
    return PairQuality(
        lung_dice=lung_dice,
        vessel_dice=vessel_dice,
        min_jacobian=None if field_mm is None else min_jacobian(field_mm, fixed.affine, lung),
        minutes=minutes,
        overlap=float(inside.mean()),
        heart_hu=float(np.median(warped.voxels[seen])) if seen is not None and seen.any() else None,
        same_examination=same_examination,
        identical=np.array_equal(fixed.voxels, warped.voxels),
    )


def _axis_towards(volume: Volume, letters: str) -> int:
    return next(axis for axis, letter in enumerate(volume.orientation) if letter in letters)


def _closed(mask: np.ndarray, spacing: np.ndarray, radius_mm: float) -> np.ndarray:
    """Return a mask closed by a ball, in mm: gaps narrower than its diameter are filled."""
    margin = [int(np.ceil(radius_mm / s)) + 1 for s in spacing]
    padded = np.pad(mask, [(m, m) for m in margin])
    grown = distance_mm(~padded, spacing) <= radius_mm
    closed = distance_mm(grown, spacing) > radius_mm
    return mask | closed[tuple(slice(m, -m) for m in margin)]

"""What the voxel values say: are these Hounsfield units, a label map, or nothing usable; and what padding becomes."""

from typing import Any

import numpy as np

from fmct.io.policy import HuPlausibility
from fmct.io.refusals import refusal
from fmct.volume import AIR_HU

PADDING_BELOW_HU = (
    -1500
)  # no scanner measures this: −1500, −2000, −2048, −3024… are marks for "outside the field of view"
PADDING_NAMED_BELOW_HU = -900  # a PixelPaddingValue above this would be tissue and is not believed
_INT16 = np.iinfo(np.int16)
_AIR_SHARE, _SOFT_SHARE = 0.08, 0.02  # of a CT read as MR; noise of a 12-bit phase image has .05 around −1000


def fill_padding(voxels: np.ndarray, named: tuple[float, float] | None = None) -> int:
    """Set padding in int16 HU voxels to air (−1000) in place; return how many voxels that were.

    Padding is every value ≤ −1500 HU, and the `named` range (lowest, highest) of the header where it lies below
    −900 HU. Noise and streaks above −1500 (such as −1207) stay.
    """
    count = 0
    if voxels.size and int(voxels.min()) <= PADDING_BELOW_HU:
        padding = voxels <= PADDING_BELOW_HU
        count += int(np.count_nonzero(padding))
        voxels[padding] = AIR_HU
    if named is not None and named[1] < PADDING_NAMED_BELOW_HU and named[1] > PADDING_BELOW_HU:
        padding = (voxels >= named[0]) & (voxels <= named[1])
        count += int(np.count_nonzero(padding))
        voxels[padding] = AIR_HU
    return count


def to_hu(values: np.ndarray, out: np.ndarray) -> tuple[float, float, float]:
    """Round real values into the int16 array `out`; return (lowest, highest, largest rounding error) in HU.

    Raises Refusal for values that are not finite or do not fit HU (above 32767 or below −32768).
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise refusal("non-finite-values", f"{bad} of {values.size} voxels are NaN or infinite", voxels=bad)
    low, high = float(values.min()), float(values.max())
    if low < _INT16.min or high > _INT16.max:
        reason = f"values from {low:.6g} to {high:.6g} are no HU: an unsigned overflow or a wrong rescale"
        raise refusal("bad-rescale", reason, value_min=low, value_max=high)
    if values.dtype.kind in "iu":
        out[...] = values
        return low, high, 0.0
    whole = np.rint(values)
    out[...] = whole
    return low, high, float(np.abs(values - whole).max())


class ValueCounts:
    """How often each int16 value occurs, gathered slab by slab from every second row and column."""

    def __init__(self) -> None:
        self.counts = np.zeros(65536, dtype=np.int64)
        self.low, self.high = float("inf"), float("-inf")

    def add(self, voxels: np.ndarray, low: float, high: float) -> None:
        """Count the voxels of a slice (H, W); `low` and `high` are its extremes before rounding and padding."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        sample = np.ascontiguousarray(voxels[::2, ::2]).view(np.uint16).ravel()
        self.counts += np.bincount(sample, minlength=65536)

    @property
    def by_value(self) -> np.ndarray:
        """The counts in the order of the values −32768 … 32767."""
        return np.roll(self.counts, 32768)

    def share(self, low: float, high: float) -> float:
        """Return the share of voxels with low ≤ value < high."""
        values = np.arange(-32768, 32768)
        chosen = (values >= low) & (values < high)
        return float(self.by_value[chosen].sum() / max(1, self.counts.sum()))

    def median(self, above: float) -> float:
        """Return the median of the values above a bound; NaN when there are none."""
        values = np.arange(-32768, 32768)
        counts = np.where(values > above, self.by_value, 0)
        if counts.sum() == 0:
            return float("nan")
        return float(values[np.searchsorted(np.cumsum(counts), counts.sum() / 2)])

    def distinct(self) -> int:
        """Return how many different values occur."""
        return int(np.count_nonzero(self.counts))


def check_hu(counts: ValueCounts, limits: HuPlausibility, *, modality_named: bool) -> None:
    """Raise Refusal unless the values are those of a CT in HU; see HuPlausibility.

    modality_named: a header says CT, so a crop without any air or a simple phantom is believed.
    """
    tissue, median = counts.share(limits.tissue_above, 32768), counts.median(limits.tissue_above)
    air = counts.share(-32768, limits.air_below)
    numbers: dict[str, Any] = {
        "value_min": counts.low,
        "value_max": counts.high,
        "air_share": air,
        "tissue_share": tissue,
        "tissue_median_hu": None if np.isnan(median) else median,
        "distinct_values": counts.distinct(),
    }
    told = f"values from {counts.low:.6g} to {counts.high:.6g}"
    if counts.low == counts.high:
        raise refusal("implausible-hu", f"every voxel is {counts.low:.6g}", **numbers)
    if modality_named and counts.low >= 0:
        raise refusal("bad-rescale", f"{told}, none negative: the rescale intercept was not applied", **numbers)
    if not modality_named and air < limits.min_air_share:
        reason = (
            f"{told} ({counts.distinct()} distinct integers) hold no air, a share of {air:.2g} below "
            f"{limits.air_below:g} HU: no CT in HU. If it is an image, name its modality by pattern or table"
        )
        raise refusal("implausible-hu", reason, **numbers)
    if not modality_named and counts.distinct() < limits.min_distinct_values:
        reason = f"{told}, only {counts.distinct()} distinct ones: a mask or label map"
        raise refusal("implausible-hu", reason, **numbers)
    if tissue < limits.min_tissue_share:
        reason = f"no tissue: a share of {tissue:.2g} lies above {limits.tissue_above:g} HU"
        raise refusal("implausible-hu", reason, **numbers)
    soft, below_air = counts.share(-200, 300), counts.share(-1400, -1040)
    if soft < limits.shifted_max_soft_share and below_air > limits.shifted_min_fat_share:
        reason = (
            f"a share of {soft:.2g} lies in −200…300 HU and {below_air:.2g} in −1400…−1040 HU: "
            "the values look shifted by −1024, as when a rescale intercept is applied twice"
        )
        raise refusal("bad-rescale", reason, **numbers, soft_tissue_share=soft, below_air_share=below_air)
    low, high = limits.tissue_median
    if not low <= median <= high:
        code = "bad-rescale" if modality_named else "implausible-hu"
        reason = (
            f"the median above {limits.tissue_above:g} HU is {median:g}, outside {low:g}…{high:g}: "
            "these are no HU, or the rescale intercept was not applied"
        )
        raise refusal(code, reason, **numbers)


def check_not_ct(voxels: np.ndarray) -> None:
    """Raise Refusal for float voxels of a supposed MR that are the HU of a CT.

    Those are whole numbers, many of them around −1000 (air) and some around 0 (water):
    no magnitude has them, nor QSM in any unit, nor the even spread of a phase image.
    """
    sample = voxels[::2, ::2, ::2]
    air = float(np.mean((sample >= -1100) & (sample <= -900)))
    soft = float(np.mean((sample >= -200) & (sample <= 200)))
    if air >= _AIR_SHARE and soft >= _SOFT_SHARE and (sample == np.rint(sample)).all():
        told = f"a share of {air:.2g} lies around −1000 (air), {soft:.2g} around 0"
        reason = f"expected MR, and the values are HU of a CT: {told}"
        raise refusal("wrong-modality", reason, modality="CT", air_share=air, soft_tissue_share=soft)


def check_image(voxels: np.ndarray, modality: str) -> None:
    """Raise Refusal unless float voxels of PT or MR are finite, not constant, and no label map."""
    if not np.isfinite(voxels).all():
        bad = int(np.count_nonzero(~np.isfinite(voxels)))
        raise refusal("non-finite-values", f"{bad} of {voxels.size} voxels are NaN or infinite", voxels=bad)
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        raise refusal("label-map", f"every voxel of this {modality} is {low:g}", value_min=low, value_max=high)
    sample = voxels[::2, ::2, ::2].ravel()
    distinct = np.unique(sample)
    if len(distinct) <= 16 and (distinct == np.rint(distinct)).all():
        reason = f"only {len(distinct)} distinct integers from {low:g} to {high:g}: a mask, not a {modality}"
        raise refusal("label-map", reason, distinct_values=len(distinct), value_min=low, value_max=high)

"""The last steps of every reader: modality, padding, plausibility, mending, canonical axes."""

from typing import Any

import numpy as np

from fmct.errors import Refusal
from fmct.io.mend import regularize
from fmct.io.plausibility import ValueCounts, check_hu, check_image, check_not_ct, fill_padding, to_hu
from fmct.io.policy import ReadPolicy
from fmct.io.refusals import refusal, rounded
from fmct.io.stack import Stack, defects, raise_unmended
from fmct.volume import AIR_HU, CANONICAL, UNITS, Volume


def check_size(shape: tuple[int, ...], policy: ReadPolicy) -> None:
    """Raise Refusal for a grid (z, y, x) with too few or too many voxels; called before any allocation."""
    if min(shape) < policy.min_slices:
        reason = (
            f"{' × '.join(map(str, shape))} voxels (z, y, x); expected at least {policy.min_slices} along each axis"
        )
        raise refusal("too-few-slices", reason, shape=shape, min_slices=policy.min_slices)
    voxels = int(np.prod([int(n) for n in shape], dtype=object))
    if voxels > policy.max_voxels:
        reason = f"{' × '.join(map(str, shape))} voxels exceed max_voxels={policy.max_voxels}"
        raise refusal("too-large", reason, shape=shape, voxels=voxels, max_voxels=policy.max_voxels)


def wanted(modality: str, policy: ReadPolicy) -> None:
    """Raise Refusal unless the policy asks for the modality."""
    if modality not in policy.modalities:
        reason = f"the modality is {modality}; asked for is {', '.join(policy.modalities)}"
        raise refusal("wrong-modality", reason, modality=modality, modalities=policy.modalities)


def decide_modality(scaled: "ScaledVoxels", named: str | None, policy: ReadPolicy) -> tuple[str, np.ndarray, dict]:
    """Return (modality, voxels, facts) of a file without a modality header.

    A `named` modality (table, pattern or caller) is believed. Otherwise plausible HU make it a CT; anything else is
    refused with its numbers, or is the one other modality when the policy asks for just that one.
    """
    if named is not None:
        wanted(named, policy)
        if named == "CT":
            return ("CT", *hu_voxels(scaled, policy, plausible=False))
        return (named, *float_voxels(scaled, named))
    sole = policy.modalities[0] if len(policy.modalities) == 1 else "CT"
    try:
        voxels, facts = hu_voxels(scaled, policy, plausible=True)
    except Refusal as refused:
        if sole == "CT" or refused.code not in ("implausible-hu", "bad-rescale"):
            raise
        return (sole, *float_voxels(scaled, sole))
    wanted("CT", policy)
    return "CT", voxels, facts


class ScaledVoxels:
    """Stored voxels (D, H, W) with the scale that turns them into values, applied plane by plane."""

    def __init__(self, stored: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> None:
        self.stored, self.slope, self.intercept = stored, slope, intercept

    def plane(self, number: int) -> np.ndarray:
        """Return the values (H, W) of one plane: integers where stored and scale are, else float64."""
        plane = self.stored[number]
        if self.slope == 1.0 and self.intercept == 0.0:
            return plane
        if plane.dtype.kind in "iu" and self.slope.is_integer() and self.intercept.is_integer():
            return plane.astype(np.int64) * int(self.slope) + int(self.intercept)
        return plane.astype(np.float64) * self.slope + self.intercept


def hu_voxels(scaled: ScaledVoxels, policy: ReadPolicy, *, plausible: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Return int16 HU (D, H, W) with padding as air, and what was noted. Raises Refusal for values that are no HU."""
    voxels = np.empty(scaled.stored.shape, dtype=np.int16)
    counts, padding, error = ValueCounts(), 0, 0.0
    for number, plane in enumerate(voxels):
        low, high, rounding = to_hu(scaled.plane(number), plane)
        error = max(error, rounding)
        padding += fill_padding(plane)
        counts.add(plane, low, high)
    if plausible:
        check_hu(counts, policy.hu, modality_named=False)
    facts: dict[str, Any] = {"padding_voxels": padding}
    if error > 1e-3:
        facts["rounding_error_hu"] = rounded(error)
    return voxels, facts


def float_voxels(scaled: ScaledVoxels, modality: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return float32 values (D, H, W) of a PT or MR. Raises Refusal for label maps and values that are not finite."""
    voxels = np.empty(scaled.stored.shape, dtype=np.float32)
    for number in range(len(voxels)):
        voxels[number] = scaled.plane(number)
    check_image(voxels, modality)
    if modality == "MR":
        check_not_ct(voxels)
    return voxels, {}


def units_of(modality: str, policy: ReadPolicy) -> str:
    """Return the units of a file that does not state them."""
    return policy.pt_file_units if modality == "PT" else UNITS[modality]


def checked_stack(stack: Stack, policy: ReadPolicy) -> list[str]:
    """Return the codes of the defects to mend. Raises the first defect that the policy does not mend."""
    found = defects(stack, policy)
    raise_unmended(found, policy)
    return list(found)


def place(
    voxels: np.ndarray, stack: Stack, mend: list[str], *, modality: str, units: str, facts: dict[str, Any]
) -> Volume:
    """Return the canonical (SPL) Volume of slices (K, H, W), put on a regular grid first where `mend` names defects."""
    affine = stack.affine
    facts["original_affine"] = affine.tolist()  # file order (slice, row, column) → RAS mm: what an audit goes back to
    if mend:
        facts["mended"] = mend
        facts["mended_from"] = rounded({"tilt_degrees": stack.tilt_degrees, "slices": len(voxels)})
        voxels, affine = regularize(voxels, stack, fill=AIR_HU if modality == "CT" else 0.0)
    return Volume(voxels, affine, modality, units, facts).oriented(CANONICAL)

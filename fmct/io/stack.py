"""The geometry of a stack of parallel slices: order, step, tilt, gaps. Positions are RAS mm."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fmct.errors import Refusal
from fmct.io.policy import ReadPolicy
from fmct.io.refusals import refusal

SAME_POSITION_MM = 0.01


@dataclass(frozen=True)
class Stack:
    """Parallel slices, two or more, in order along their normal.

    positions (K, 3): the centre of each slice's first pixel. y_step, x_step (3,): the way to the next row and column.
    """

    positions: np.ndarray
    y_step: np.ndarray
    x_step: np.ndarray

    @cached_property
    def normal(self) -> np.ndarray:
        """The unit normal of the slices, (3,), on the side to which the positions go."""
        normal = np.cross(self.x_step, self.y_step)
        normal = normal / np.linalg.norm(normal)
        return normal if (self.positions[-1] - self.positions[0]) @ normal >= 0 else -normal

    @cached_property
    def heights(self) -> np.ndarray:
        """Position of each slice along the normal in mm, (K,), growing."""
        return self.positions @ self.normal

    @property
    def steps_mm(self) -> np.ndarray:
        """Distances of neighbouring slice positions in mm, (K − 1,)."""
        return np.linalg.norm(np.diff(self.positions, axis=0), axis=1)

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """The regular grid nearest to the positions: (first position, step from slice to slice), (3,) each.

        Positions that are regular to a thousandth of a millimetre give first and last exactly; else (rounded
        headers) the grid is the least-squares line, so that rounding at the ends does not count twice.
        """
        number = np.arange(len(self.positions))
        step = (self.positions[-1] - self.positions[0]) / number[-1]
        if np.abs(self.positions - self.positions[0] - number[:, None] * step).max() <= 1e-3:
            return self.positions[0], step
        centred = number - number.mean()
        step = centred @ self.positions / (centred @ centred)
        return self.positions.mean(axis=0) - number.mean() * step, step

    @property
    def mean_step(self) -> np.ndarray:
        """The vector from one slice to the next on the regular grid, (3,)."""
        return self.grid[1]

    @property
    def tilt_degrees(self) -> float:
        """The angle between the normal of the slices and the line of their positions."""
        step = self.mean_step
        sideways = np.linalg.norm(step - (step @ self.normal) * self.normal)
        return float(np.degrees(np.arctan2(sideways, step @ self.normal)))

    @property
    def deviations_mm(self) -> np.ndarray:
        """How far each slice lies from the regular grid, (K,)."""
        regular = self.grid[0] + np.arange(len(self.positions))[:, None] * self.grid[1]
        return np.linalg.norm(self.positions - regular, axis=1)

    @property
    def affine(self) -> np.ndarray:
        """The (4, 4) affine, voxel (z, y, x) → RAS mm, of the regular grid."""
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1], affine[:3, 2] = self.mean_step, self.y_step, self.x_step
        affine[:3, 3] = self.grid[0]
        return affine

    @classmethod
    def from_affine(cls, affine: np.ndarray, slices: int) -> "Stack":
        """Return the stack of `slices` planes that an affine (z, y, x) → mm describes, z across the slices."""
        positions = affine[:3, 3] + np.arange(slices)[:, None] * affine[:3, 0]
        return cls(positions, affine[:3, 1], affine[:3, 2])


def slice_order(positions: np.ndarray, y_step: np.ndarray, x_step: np.ndarray) -> np.ndarray:
    """Return the indices that sort slice positions (K, 3) along the normal x × y."""
    return np.argsort(positions @ np.cross(x_step, y_step), kind="stable")


def common_step(steps_mm: np.ndarray) -> float:
    """Return the smallest step that at least a tenth of the steps share (within 5 %), in mm."""
    for step in np.sort(steps_mm):
        near = np.abs(steps_mm - step) <= 0.05 * step
        if near.sum() >= 0.1 * len(steps_mm):
            return float(np.median(steps_mm[near]))
    return float(np.median(steps_mm))


def distinct_steps(steps_mm: np.ndarray) -> list[tuple[float, int]]:
    """Return [(step in mm, how often)], steps within 0.1 mm of each other as one, the smallest first."""
    groups: list[list[float]] = []
    for step in np.sort(steps_mm):
        if groups and step - groups[-1][0] <= 0.1:
            groups[-1].append(float(step))
        else:
            groups.append([float(step)])
    return [(float(np.median(group)), len(group)) for group in groups]


def defects(stack: Stack, policy: ReadPolicy) -> dict[str, Refusal]:
    """Return {code: refusal} of what keeps the stack from being a regular orthogonal grid; empty when it is one.

    Repeated positions and a fourth dimension are reported alone, because steps mean nothing then.
    """
    repeated = _repeats(stack)
    if repeated is not None:
        return {repeated.code: repeated}
    found: dict[str, Refusal] = {}
    tilt = stack.tilt_degrees
    if tilt > policy.tilt_tolerance_degrees:
        reason = f"the slices are tilted by {tilt:.1f}° against the line of their positions"
        found["gantry-tilt"] = refusal("gantry-tilt", reason, tilt_degrees=tilt)
    uneven = _unevenness(stack, policy)
    if uneven is not None:
        found[uneven.code] = uneven
    return found


def raise_unmended(found: Mapping[str, Refusal], policy: ReadPolicy) -> None:
    """Raise the first defect that the policy does not mend; its text and numbers name all of them."""
    mended = {
        "gantry-tilt": policy.tilt == "resample",
        "non-uniform-spacing": policy.spacing == "resample",
        "missing-slices": policy.spacing == "resample",
    }
    for code, defect in found.items():
        too_wide = defect.numbers.get("largest_step_mm", 0.0) > policy.max_gap_mm
        if mended.get(code, False) and not too_wide:
            continue
        numbers: dict[str, Any] = {}
        for other in found.values():
            numbers.update(other.numbers)
        reason = "; ".join([defect.reason, *(other.reason for key, other in found.items() if key != code)])
        if mended.get(code, False):
            reason += f"; a gap above max_gap_mm={policy.max_gap_mm:g} is not filled"
        raise refusal(code, reason, **numbers, problems=list(found))


def _repeats(stack: Stack) -> Refusal | None:
    """Return the refusal of slices that share a position, None when each has its own."""
    new_place = np.concatenate([[True], stack.steps_mm > SAME_POSITION_MM])
    counts = np.bincount(np.cumsum(new_place) - 1)
    if (counts == 1).all():
        return None
    slices, places = len(stack.positions), len(counts)
    if places > 1 and (counts == counts[0]).all():
        reason = f"{slices} slices at {places} positions, {counts[0]} at each: time points, phases or echoes"
        return refusal("four-dimensional", reason, slices=slices, positions=places, volumes=int(counts[0]))
    if places == 1:
        return refusal("duplicate-slices", f"all {slices} slices lie at one position", slices=slices, positions=1)
    repeated = stack.heights[new_place][counts > 1]
    reason = f"{slices} slices at {places} positions; {len(repeated)} positions hold more than one"
    return refusal("duplicate-slices", reason, slices=slices, positions=places, repeated_at_mm=repeated[:20])


def _unevenness(stack: Stack, policy: ReadPolicy) -> Refusal | None:
    """Return the refusal of irregular positions, as gaps when every step is a multiple of the common one."""
    steps = stack.steps_mm
    allowed = max(policy.spacing_tolerance_mm, policy.spacing_tolerance * float(np.linalg.norm(stack.mean_step)))
    deviation = float(stack.deviations_mm.max())
    if deviation <= allowed:
        return None
    step = common_step(steps)
    multiples = np.rint(steps / step)
    off = np.abs(steps - multiples * step)
    numbers = {
        "steps_mm": [value for value, _ in distinct_steps(steps)][:20],
        "step_counts": [count for _, count in distinct_steps(steps)][:20],
        "largest_step_mm": float(steps.max()),
        "largest_deviation_mm": deviation,
        "slices": len(stack.positions),
    }
    if (multiples >= 1).all() and (off <= max(policy.spacing_tolerance_mm, policy.spacing_tolerance * step)).all():
        gaps = np.flatnonzero(multiples > 1)
        missing = int((multiples - 1).sum())
        if missing:
            reason = f"{missing} slices are missing in {len(gaps)} gaps of a {step:.3g} mm stack"
            return refusal("missing-slices", reason, missing=missing, gaps_at_mm=stack.heights[gaps][:20], **numbers)
    told = ", ".join(f"{value:.1f} mm × {count}" for value, count in distinct_steps(steps)[:6])
    reason = f"the steps between slices are {told}; a slice lies {deviation:.2f} mm from its regular place"
    return refusal("non-uniform-spacing", reason, **numbers)

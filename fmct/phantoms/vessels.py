"""Branching vessels for phantoms: trees that fill a region, clots inside them, and how they are drawn."""

from dataclasses import dataclass

import numpy as np

from fmct.errors import DataError

LEAF_RADIUS_MM = 2.0
_REACH = 0.45  # of the way to the middle of what a branch has to supply, before it splits
_BEND = 0.12  # of a branch's length, sideways


@dataclass(frozen=True)
class Tubes:
    """Round tubes along straight axes, in RAS mm, tapering and with round ends.

    start, end: (S, 3); radius: (S, 2) at start and end; parent: (S,) int, the tube that each continues, −1 for none.
    """

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray
    parent: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def __add__(self, other: "Tubes") -> "Tubes":
        later = np.where(other.parent < 0, -1, other.parent + len(self))
        return Tubes(
            np.concatenate([self.start, other.start]),
            np.concatenate([self.end, other.end]),
            np.concatenate([self.radius, other.radius]),
            np.concatenate([self.parent, later]),
        )

    def scaled(self, factor: float) -> "Tubes":
        """Return the same tubes, `factor` times as thick."""
        return Tubes(self.start, self.end, self.radius * factor, self.parent)


def no_tubes() -> Tubes:
    """Return tubes of which there are none."""
    return Tubes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0, dtype=np.int64))


def polyline(points: np.ndarray, radii: np.ndarray) -> Tubes:
    """Return the tube through `points` (P, 3) in mm, with a radius (P,) in mm at each."""
    points, radii = np.asarray(points, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    radius = np.stack([radii[:-1], radii[1:]], axis=1)
    return Tubes(points[:-1], points[1:], radius, np.arange(len(points) - 1) - 1)


def tree(
    root: np.ndarray, leaves: np.ndarray, random: np.random.Generator, *, root_radius: float | None = None
) -> Tubes:
    """Return a tree that leads from `root` (3,) to every one of `leaves` (L, 3), in mm.

    A branch runs part of the way to the middle of its leaves and splits them in two across their longest extent. Radii
    keep their third powers across a split (Murray 1926): LEAF_RADIUS_MM · (leaves behind)^(1/3). root_radius: where
    the tree takes over from a thicker tube.
    """
    starts: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    radii: list[tuple[float, float]] = []
    parents: list[int] = []

    def _add(start: np.ndarray, end: np.ndarray, first: float, last: float, parent: int) -> int:
        """Add a branch of two tubes that bends in the middle, and return the number of the second."""
        along = end - start
        aside = np.cross(along, random.normal(size=3))
        aside *= _BEND * np.linalg.norm(along) * random.uniform(0.3, 1) / max(np.linalg.norm(aside), 1e-9)
        middle = (start + end) / 2 + aside
        for a, b, r in ((start, middle, (first, (first + last) / 2)), (middle, end, ((first + last) / 2, last))):
            starts.append(a)
            ends.append(b)
            radii.append(r)
            parents.append(parent)
            parent = len(starts) - 1
        return parent

    def _grow(start: np.ndarray, group: np.ndarray, thick: float, parent: int) -> None:
        if len(group) == 1:
            _add(start, group[0], thick, 0.6 * LEAF_RADIUS_MM, parent)
            return
        own = LEAF_RADIUS_MM * len(group) ** (1 / 3)
        centre = group.mean(axis=0)
        node = start + random.uniform(0.75, 1.25) * _REACH * (centre - start)
        number = _add(start, node, thick, own, parent)
        spread = group - centre
        axis = np.linalg.svd(spread, full_matrices=False)[2][0]
        upper = spread @ axis > np.median(spread @ axis)
        for part in (group[upper], group[~upper]):
            _grow(node, part, min(own, LEAF_RADIUS_MM * len(part) ** (1 / 3) * 1.1), number)

    _grow(np.asarray(root, dtype=np.float64), leaves, root_radius or LEAF_RADIUS_MM * len(leaves) ** (1 / 3), -1)
    return Tubes(np.array(starts), np.array(ends), np.array(radii), np.array(parents))


def clot(vessels: Tubes, radius_mm: float, length_mm: float, random: np.random.Generator) -> Tubes:
    """Return a clot of this radius and length inside the vessels, following them downstream from a random place.

    It lies in a vessel at least as thick as itself, the better the closer the fit; downstream it narrows with the
    lumen. Raises DataError when no vessel is thick enough.
    """
    lumen = vessels.radius.min(axis=1)
    wide = np.flatnonzero(lumen >= radius_mm)
    if not len(wide):
        raise DataError(
            f"embolus_radius_mm={radius_mm:g}: the widest artery has a radius of {lumen.max():.1f} mm. Choose less."
        )
    fit = np.exp(-((lumen[wide] - radius_mm) ** 2) / (2 * (0.25 * radius_mm) ** 2)) + 1e-9
    number = int(random.choice(wide, p=fit / fit.sum()))
    at = vessels.start[number] + random.uniform(0.2, 0.5) * (vessels.end[number] - vessels.start[number])
    points, radii, left = [at], [radius_mm], length_mm
    while True:
        way = vessels.end[number] - at
        far = float(np.linalg.norm(way))
        step = min(1.0, left / max(far, 1e-9))
        at, left = at + step * way, left - step * far
        points.append(at)
        radii.append(min(radius_mm, float(vessels.radius[number, 1])))
        children = np.flatnonzero(vessels.parent == number)
        if left <= 1e-6 or not len(children):
            return polyline(np.array(points), np.array(radii))
        number = int(random.choice(children))


def occupancy(
    tubes: Tubes, points: np.ndarray, affine: np.ndarray, soft_mm: float, reach_mm: float = 0.0
) -> np.ndarray:
    """Return the share of each voxel that tubes fill, (D, H, W) float32.

    points: (D, H, W, 3) RAS mm where each voxel looks, at most `reach_mm` from its own place on the grid of `affine`.
    soft_mm: how wide a boundary is, a voxel's size.
    """
    filled = np.zeros(points.shape[:3], dtype=np.float32)
    to_index = np.linalg.inv(affine[:3, :3])
    for start, end, (first, last) in zip(tubes.start, tubes.end, tubes.radius, strict=True):
        margin = np.linalg.norm(to_index, axis=1) * (max(first, last) + soft_mm + reach_mm)
        ends = np.stack([to_index @ (start - affine[:3, 3]), to_index @ (end - affine[:3, 3])])
        low = np.maximum(np.floor(ends.min(axis=0) - margin).astype(int), 0)
        high = np.minimum(np.ceil(ends.max(axis=0) + margin).astype(int) + 1, filled.shape)
        if (high <= low).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        along = (end - start).astype(np.float32)
        offset = points[box] - start.astype(np.float32)
        share = np.clip(offset @ along / max(float(along @ along), 1e-6), 0, 1)
        away = offset - share[..., None] * along
        distance = np.sqrt(np.einsum("...i,...i", away, away)) - (first + share * (last - first))
        np.maximum(filled[box], np.clip(0.5 - distance / soft_mm, 0, 1), out=filled[box])
    return filled

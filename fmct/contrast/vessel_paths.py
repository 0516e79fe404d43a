"""Vessel-like tubes along the body in non-contrast CT: bright spots in fat, followed from slice to slice.

Blood and muscle have nearly the same HU, so that a vessel shows where fat surrounds it: as a round spot in an axial
slice that stays while one moves along the body. The cheapest such chain through all slices is found exactly, by
dynamic programming; then its surroundings are blocked and the next one is found.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fmct.contrast.morphology import depth_mm, grown

_RADII_MM = (2.5, 4.5)
_BONE_HU = 160.0
_SKIN_MM = (5.0, 22.0)  # from "not here" to "free"
_OUTSIDE = 8.0  # the cost of a step in air or bone; a step in tissue costs up to about 2
_STEPS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))


@dataclass(frozen=True)
class Tube:
    """A vessel's centre line, one point a slice. name: its structure of `time_curves`.

    centre_mm: (D, 2) along y and x from the first voxel's centre. radius_mm: (D,), 0 where there is none.
    """

    name: str
    centre_mm: np.ndarray
    radius_mm: np.ndarray

    def occupancy(
        self, number: int, shape: tuple[int, int], spacing_mm: np.ndarray
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return (box, the share of each of its pixels that is inside), of slice `number` of (H, W) pixels."""
        radius, centre = float(self.radius_mm[number]), self.centre_mm[number]
        pixel = float(spacing_mm.mean())
        low = np.clip(np.floor((centre - radius) / spacing_mm - 1), 0, shape).astype(int)
        high = np.clip(np.ceil((centre + radius) / spacing_mm + 2), low, shape).astype(int)
        box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
        y = np.arange(box[0].start, box[0].stop)[:, None] * spacing_mm[0] - centre[0]
        x = np.arange(box[1].start, box[1].stop)[None, :] * spacing_mm[1] - centre[1]
        if radius <= 0:
            return box, np.zeros((y.size, x.size), dtype=np.float32)
        # Partial volume: the wall cuts a pixel over about its own width; a tube thinner than that fills a part of it.
        inside = np.clip((radius - np.hypot(y, x)) / pixel + 0.5, 0, 1)
        return box, np.minimum(inside, min(1.0, np.pi * radius**2 / pixel**2)).astype(np.float32)


def spots(voxels: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Return (D, H, W) float32 in [0, 1]: how much each voxel is the middle of a round bright spot of its axial slice.

    The weaker of the two curvatures of the smoothed slice, at two widths: an edge or a septum has only one.
    """
    tissue = np.clip(voxels, -110, 75).astype(np.float32)
    best = np.zeros_like(tissue)
    for radius in _RADII_MM:
        sigma = (1.0, *(radius / np.sqrt(2) / spacing_mm[1:]))
        yy, xx, yx = (
            ndimage.gaussian_filter(tissue, sigma, order=order)  # type: ignore[arg-type]
            / (spacing_mm[a] * spacing_mm[b])
            for order, a, b in (((0, 2, 0), 1, 1), ((0, 0, 2), 2, 2), ((0, 1, 1), 1, 2))
        )
        weaker = (yy + xx) / 2 + np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
        np.maximum(best, -(radius**2) * weaker, out=best)
    return np.clip(best / 60.0, 0, 1)


def tube_costs(voxels: np.ndarray, spacing_mm: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Return (D, H, W) float32 costs of a step of a vessel's centre: low on spots, high in bone, skin and air."""
    costs = 1.0 - spots(voxels, spacing_mm)
    smooth = ndimage.gaussian_filter(voxels.astype(np.float32), (0.5, *(1.5 / spacing_mm[1:])))
    costs += 0.7 * np.clip((-smooth - 20) / 80, 0, 1)  # in the middle of fat nothing is to be seen
    depth = depth_mm(body, spacing_mm)
    costs += np.clip((_SKIN_MM[1] - depth) / (_SKIN_MM[1] - _SKIN_MM[0]), 0, 1)
    bone = grown(voxels > _BONE_HU)
    costs[bone | (smooth < -150) | ~body] = _OUTSIDE
    return costs.astype(np.float32)


def cheapest_path(costs: np.ndarray, *, bend: float = 0.15) -> tuple[np.ndarray, float]:
    """Return ((D, 2) int pixels of the cheapest chain through all slices, its mean cost).

    From slice to slice the chain moves to one of the nine nearest pixels, at `bend` times the distance.
    """
    depth, height, width = costs.shape
    total, came = costs[0].astype(np.float64), np.zeros(costs.shape, dtype=np.uint8)
    for z in range(1, depth):
        padded = np.pad(total, 1, constant_values=np.inf)
        ways = np.stack(
            [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] + bend * np.hypot(y, x) for y, x in _STEPS]
        )
        came[z] = ways.argmin(axis=0)
        total = np.take_along_axis(ways, came[z][None].astype(np.intp), axis=0)[0] + costs[z]
    path = np.empty((depth, 2), dtype=np.int64)
    path[-1] = np.unravel_index(int(total.argmin()), total.shape)
    for z in range(depth - 1, 0, -1):
        path[z - 1] = path[z] + _STEPS[came[z][tuple(path[z])]]
    return path, float(total.min() / depth)


def find_paths(costs: np.ndarray, spacing_mm: np.ndarray, *, count: int, apart_mm: float) -> list[np.ndarray]:
    """Return up to `count` chains, (D, 2) pixels, cheapest first, whose middles stay `apart_mm` from each other.

    A chain that costs more than two a step on average would run through bone or air, and ends the list.
    """
    free, found = costs.copy(), []
    y, x = np.ogrid[: costs.shape[1], : costs.shape[2]]
    for _ in range(count):
        path, mean = cheapest_path(free)
        if mean > 2.0:
            break
        found.append(path)
        for z, (row, column) in enumerate(path):
            near = np.hypot((y - row) * spacing_mm[1], (x - column) * spacing_mm[2]) < apart_mm
            free[z][near] = np.maximum(free[z][near], _OUTSIDE)
    return found


def smooth_mm(path: np.ndarray, spacing_mm: np.ndarray, *, over_mm: float = 8.0) -> np.ndarray:
    """Return a chain of pixels as a smooth line, (D, 2) mm from the first voxel's centre."""
    line = path * np.asarray(spacing_mm)[1:]
    return ndimage.gaussian_filter1d(line.astype(np.float64), over_mm / spacing_mm[0], axis=0, mode="nearest")

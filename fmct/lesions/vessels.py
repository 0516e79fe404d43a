"""Vessels out of an image before lesions are looked for: found by their tubular shape, then filled in from outside.

`modern`: Frangi's vesselness (1998) in 3D with widths in millimetres; long or elongated components are vessels, balls
are kept. `paper`: slice by slice, as Sundaresan et al. (2023): vesselness and structure-tensor linearity, two clusters,
regions that are round or not solid are released. Both depend on ratios of intensities only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from fmct.errors import ConfigError, DataError
from fmct.lesions.shape import eccentricity, shape_of, solidity
from fmct.normalise import check_sign

MODES = ("modern", "paper")
_EVERYWHERE = np.ones((3, 3, 3), dtype=bool)
_SLAB = 1 << 16  # voxels whose eigenvalues are taken at once


@dataclass(frozen=True)
class VesselRules:
    """What is a vessel.

    mode: modern or paper. sigma_mm: widths of tubes looked for (modern). threshold: of vesselness, 0 to 1, and rim:
    of the voxels beside a vessel that belong to it (modern). A component is a vessel when it is at least
    longest_lesion_mm long, or at least min_length_mm and min_elongation times longer than wide (modern). paper_sigma:
    in pixels, from 0.5 to 1.2 in steps of 0.2; paper_eccentricity, paper_solidity: a region below the first and above
    the second is released.
    """

    mode: str = "modern"
    sigma_mm: list[float] = field(default_factory=lambda: [0.6, 1.0])
    threshold: float = 0.25
    rim: float = 0.05
    min_length_mm: float = 4.0
    min_elongation: float = 2.0
    longest_lesion_mm: float = 12.0
    paper_sigma: list[float] = field(default_factory=lambda: [0.5, 0.7, 0.9, 1.1])
    paper_eccentricity: float = 0.9
    paper_solidity: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"vessels: mode is one of {', '.join(MODES)}; got {self.mode!r}.")
        for name in ("sigma_mm", "paper_sigma"):
            if not getattr(self, name) or not all(0 < s < math.inf for s in getattr(self, name)):
                raise ConfigError(f"vessels: {name} are positive widths; got {getattr(self, name)}.")


def remove_vessels(
    values: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    sign: str,
    rules: VesselRules | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (image with its vessels filled in, the vessels as bool mask), both (D, H, W), the image of values' dtype.

    mask: bool, the brain; no voxel outside it changes, and none there plays a part. sign: whether vessels are `dark` or
    `bright`, as the lesions are. Raises DataError for an empty mask, one on another grid, and values that are not
    finite.
    """
    rules, bright = rules or VesselRules(), check_sign(sign) == "bright"
    check_brain(values, mask, "remove_vessels")
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inside = mask[box]
    image = values[box].astype(np.float32)
    image[~inside] = np.median(image[inside])  # no edge where the brain ends
    image = image if bright else -image
    find = _slice_by_slice if rules.mode == "paper" else _in_space
    vessels = np.zeros(values.shape, dtype=bool)
    vessels[box] = find(image, inside, spacing_mm, rules)
    return filled_in(values, vessels, mask, spacing_mm), vessels


def check_brain(values: np.ndarray, mask: np.ndarray, what: str) -> None:
    """Raise DataError for a brain mask that is empty or on another grid, and for values that are not finite inside."""
    if mask.shape != values.shape:
        raise DataError(f"{what}: the brain mask has {mask.shape} voxels, the image {values.shape}: another grid.")
    if not mask.any():
        raise DataError(
            f"{what}: the brain mask is empty. Give one that covers the brain (see fmct.lesions.brain_mask)."
        )
    if not np.isfinite(values[mask]).all():
        raise DataError(f"{what}: the image holds NaN or infinite values inside the brain mask.")


def filled_in(values: np.ndarray, hole: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the image with a hole filled from outside inwards, each voxel the mean of its known 26 neighbours.

    Neighbours count by the inverse of their distance in mm, and only those inside `mask`, so that no skull or air comes
    in. A part of the hole that nothing known touches keeps its values: it is never waited for.
    """
    result = values.copy()
    if not hole.any():
        return result
    box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in ndimage.find_objects(hole.astype(np.uint8))[0])
    known = mask[box] & ~hole[box]
    work = np.where(known, values[box], 0).astype(np.float64)
    left = hole[box].copy()
    kernel = _closeness(spacing_mm)
    while left.any():
        front = np.argwhere(left & ndimage.binary_dilation(known, _EVERYWHERE))
        if not len(front):
            break
        filled, places = _means(work, known, front, kernel), tuple(front.T)
        work[places], known[places], left[places] = filled, True, False
    done = hole[box] & ~left
    target = result[box]
    target[done] = np.rint(work[done]) if values.dtype.kind in "iu" else work[done]
    return result


def vesselness(image: np.ndarray, spacing_mm: Sequence[float], sigma: Sequence[float], mask: np.ndarray) -> np.ndarray:
    """Return Frangi's vesselness of bright ridges, (D, H, W) or (H, W) float32 in [0, 1], 0 outside the mask.

    sigma: widths in the unit of the spacing. alpha = beta = 0.5, gamma = half the largest Hessian norm in the mask, so
    that only ratios of intensities count. Smoothing is Gaussian, second derivatives are differences of neighbours,
    which stays right where a slice is thicker than sigma.
    """
    best = np.zeros(image.shape, dtype=np.float32)
    places = np.flatnonzero(mask)
    for width in sigma:
        hessian = [part.reshape(-1)[places] for part in _hessian(image, spacing_mm, width)]
        squares = _squared_norms(hessian, image.ndim)
        gamma = float(np.sqrt(squares.max())) / 2
        if gamma == 0:
            continue
        # The two largest eigenvalues of a bright ridge are negative, and so is the trace: others need no eigenvalues.
        ridges = np.flatnonzero(_trace(hessian, image.ndim) < 0)
        flat = best.reshape(-1)
        for first in range(0, len(ridges), _SLAB):
            part = ridges[first : first + _SLAB]
            values = _eigenvalues([h[part] for h in hessian], image.ndim)
            found = _frangi(values, np.sqrt(squares[part]), gamma)
            flat[places[part]] = np.maximum(flat[places[part]], found)
    return best


def _upper(dimensions: int) -> list[tuple[int, int]]:
    """Return the places of a symmetric matrix's upper triangle, in the order in which its parts are kept."""
    return [(a, b) for a in range(dimensions) for b in range(a, dimensions)]


def _squared_norms(parts: Sequence[np.ndarray], dimensions: int) -> np.ndarray:
    pairs = zip(_upper(dimensions), parts, strict=True)
    return np.sum([part * part * (1 if a == b else 2) for (a, b), part in pairs], axis=0)


def _trace(parts: Sequence[np.ndarray], dimensions: int) -> np.ndarray:
    return np.sum([part for (a, b), part in zip(_upper(dimensions), parts, strict=True) if a == b], axis=0)


def _frangi(values: np.ndarray, norms: np.ndarray, gamma: float) -> np.ndarray:
    """Return the vesselness (N,) of bright ridges, of eigenvalues (N, 2 or 3) sorted by magnitude."""
    largest, second = np.abs(values[:, -1]), np.abs(values[:, -2])
    tiny = np.finfo(np.float32).tiny
    if values.shape[1] == 3:
        plate = second / np.maximum(largest, tiny)
        blob = np.abs(values[:, 0]) / np.maximum(np.sqrt(largest * second), tiny)
        ridge = (1 - np.exp(-2 * plate**2)) * np.exp(-2 * blob**2)
        wrong = (values[:, 1] > 0) | (values[:, 2] > 0)
    else:
        ridge = np.exp(-2 * (second / np.maximum(largest, tiny)) ** 2)
        wrong = values[:, 1] > 0
    found = ridge * (1 - np.exp(-(norms**2) / (2 * gamma**2)))
    found[wrong] = 0
    return found


def _hessian(image: np.ndarray, spacing_mm: Sequence[float], width: float) -> list[np.ndarray]:
    """Return the second derivatives per mm², times width², in the order zz, zy, zx, yy, yx, xx (2D: yy, yx, xx)."""
    smooth = ndimage.gaussian_filter(image, [width / step for step in spacing_mm], mode="nearest")
    wide = np.pad(smooth, 1, mode="edge")
    centre = (slice(1, -1),) * image.ndim
    found = []
    for a in range(image.ndim):
        for b in range(a, image.ndim):
            scale = np.float32(width**2 / (spacing_mm[a] * spacing_mm[b]))
            if a == b:
                bent = wide[_moved(image.ndim, {a: 1})] + wide[_moved(image.ndim, {a: -1})] - 2 * wide[centre]
            else:
                bent = sum(s * t * wide[_moved(image.ndim, {a: s, b: t})] for s in (1, -1) for t in (1, -1)) / 4
            found.append((bent * scale).astype(np.float32))
    return found


def _moved(dimensions: int, steps: dict[int, int]) -> tuple[slice, ...]:
    """Return the slices of an image padded by one that show it moved by whole voxels."""
    return tuple(slice(1 + steps.get(axis, 0), -1 + steps.get(axis, 0) or None) for axis in range(dimensions))


def _eigenvalues(parts: Sequence[np.ndarray], dimensions: int) -> np.ndarray:
    """Return the eigenvalues (N, d) of symmetric matrices, given by their upper triangle, sorted by magnitude."""
    matrix = np.empty((len(parts[0]), dimensions, dimensions), dtype=np.float32)
    for (a, b), part in zip(_upper(dimensions), parts, strict=True):
        matrix[:, a, b] = matrix[:, b, a] = part
    values = np.linalg.eigvalsh(matrix)
    return np.take_along_axis(values, np.abs(values).argsort(axis=1), axis=1)


def _in_space(image: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], rules: VesselRules) -> np.ndarray:
    ridges = vesselness(image, spacing_mm, rules.sigma_mm, mask)
    found = ridges >= rules.threshold
    labels = np.zeros(found.shape, dtype=np.int32)
    ndimage.label(found, structure=_EVERYWHERE, output=labels)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        shape = shape_of(np.argwhere(labels[box] == number), spacing_mm)
        stretched = shape.length_mm >= rules.min_length_mm and shape.elongation >= rules.min_elongation
        if not stretched and shape.length_mm < rules.longest_lesion_mm:
            found[box][labels[box] == number] = False
    # The rim and the ends of a vessel answer less than its middle. Grown after the shapes were judged, so that no ball
    # beside a vessel is drawn into it.
    return ndimage.binary_dilation(found, _EVERYWHERE, iterations=2, mask=ridges >= rules.rim) & mask


def _slice_by_slice(image: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], rules: VesselRules) -> np.ndarray:
    found = np.zeros(image.shape, dtype=bool)
    for number, (plane, inside) in enumerate(zip(image, mask, strict=True)):
        if np.count_nonzero(inside) < 2:
            continue
        ridges = vesselness(plane, (1.0, 1.0), rules.paper_sigma, inside)
        features = np.stack([ridges[inside], _linearity(plane)[inside]], axis=1)
        cluster = np.zeros(plane.shape, dtype=bool)
        cluster[inside] = smaller_cluster(features)
        labels = np.zeros(plane.shape, dtype=np.int32)
        ndimage.label(cluster, structure=np.ones((3, 3)), output=labels)
        for region, box in enumerate(ndimage.find_objects(labels), start=1):
            pixels = np.argwhere(labels[box] == region)
            if eccentricity(pixels) < rules.paper_eccentricity and solidity(pixels) > rules.paper_solidity:
                cluster[box][labels[box] == region] = False
        found[number] = cluster
    return found


def _linearity(plane: np.ndarray) -> np.ndarray:
    """Return half the difference of the structure tensor's eigenvalues, scaled to [0, 1]."""
    row, column = np.gradient(plane)
    rr, rc, cc = (ndimage.gaussian_filter(product, 1.0) for product in (row * row, row * column, column * column))
    half = np.sqrt(((rr - cc) / 2) ** 2 + rc**2)
    highest = float(half.max())
    return half / highest if highest > 0 else half


def smaller_cluster(features: np.ndarray, *, rounds: int = 50) -> np.ndarray:
    """Return the smaller of two k-means clusters of (N, F) features as (N,) bool; all False where there is one only.

    It begins at the least and the most of the features' sum, so it needs no random numbers.
    """
    total = features.sum(axis=1)
    centres = np.stack([features[total.argmin()], features[total.argmax()]]).astype(np.float64)
    second = np.zeros(len(features), dtype=bool)
    for _ in range(rounds):
        near = ((features - centres[0]) ** 2).sum(axis=1) > ((features - centres[1]) ** 2).sum(axis=1)
        if near.all() or not near.any():
            return np.zeros(len(features), dtype=bool)
        if (near == second).all():
            break
        second = near
        centres = np.stack([features[~second].mean(axis=0), features[second].mean(axis=0)])
    return second if 2 * np.count_nonzero(second) <= len(second) else ~second


def _closeness(spacing_mm: Sequence[float]) -> np.ndarray:
    offsets = np.stack(np.meshgrid(*([-1, 0, 1],) * 3, indexing="ij"), axis=-1) * np.asarray(spacing_mm)
    distance = np.sqrt((offsets**2).sum(axis=-1))
    return np.divide(1.0, distance, out=np.zeros_like(distance), where=distance > 0)


def _means(work: np.ndarray, known: np.ndarray, front: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the weighted mean of the known neighbours of each voxel of the front (N, 3)."""
    total, weight = np.zeros(len(front)), np.zeros(len(front))
    for offset in np.argwhere(kernel > 0):
        near = front + offset - 1
        valid = ((near >= 0) & (near < work.shape)).all(axis=1)
        places = tuple(near[valid].T)
        share = kernel[tuple(offset)] * known[places]
        total[valid] += share * work[places]
        weight[valid] += share
    return total / weight

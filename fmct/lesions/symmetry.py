"""Radial symmetry: how much a place looks like the centre of a dark or bright ball, in any number of dimensions.

Loy and Zelinsky's transform (IEEE TPAMI 2003) with radii in millimetres: each voxel votes for the place at distance r
against its gradient (dark) or along it (bright), once by count and once by strength. Votes are scattered slab by slab,
so that a slab's arithmetic stays in the cache, and count and strength travel in one number.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from fmct.errors import ConfigError, DataError
from fmct.normalise import check_sign

BLUR = 0.25  # of the radius: the width of the Gaussian over the votes (Loy and Zelinsky)
_SLAB = 1 << 16  # voxels whose arrays fit into a second-level cache
# A vote is _COUNT plus its strength in parts of the strongest that could be: in 53 bits, up to 2¹⁵ votes for one place.
_COUNT, _STRENGTH = float(1 << 38), float(1 << 22)


def symmetry_map(
    values: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    radii_mm: Sequence[float],
    sign: str,
    alpha: float = 2.0,
    blur: float = BLUR,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Return the radial symmetry of an image, of its shape, float32 in [0, 1]: 1 at the best centre.

    values: (D, H, W), or two axes; spacing_mm: of each axis. sign: `dark` or `bright` objects. radii_mm: of the objects
    looked for. alpha: strictness; higher asks for edges all around. blur: the votes' Gaussian, as share of the radius.
    mask: voxels that vote; elsewhere the map is 0. An image without any gradient has the map 0. Only ratios of
    gradients count, so the scale of the intensities does not matter.
    Raises ConfigError for a sign or radius that is none, DataError for values that are not finite.
    """
    direction = -1.0 if check_sign(sign) == "dark" else 1.0
    spacing = [float(step) for step in spacing_mm]
    low, high = _checked_range(values, spacing, radii_mm, mask)
    total = np.zeros(values.shape, dtype=np.float32)
    if low == high:
        return total
    steepest = (high - low) * math.sqrt(sum(1 / step**2 for step in spacing))
    reaches = [[math.ceil(radius / step + 0.5) for step in spacing] for radius in radii_mm]
    scattered = [np.zeros(_padded(values.shape, reach), dtype=np.float64) for reach in reaches]
    for slab, unit, weight in _voters(values, spacing, steepest, mask):
        for radius, reach, votes in zip(radii_mm, reaches, scattered, strict=True):
            _scatter(votes, slab, unit, weight, [direction * radius / step for step in spacing], reach)
    for radius, reach in zip(radii_mm, reaches, strict=True):
        votes = scattered.pop(0)
        inner = votes[tuple(slice(r, r + n) for r, n in zip(reach, values.shape, strict=True))]
        symmetry = _symmetry(inner, alpha)
        total += ndimage.gaussian_filter(symmetry, [blur * radius / step for step in spacing], truncate=3.0)
    if mask is not None:
        total[~mask] = 0.0
    highest = float(total.max())
    return np.divide(total, highest, out=total) if highest > 0 else total


def _checked_range(
    values: np.ndarray, spacing: Sequence[float], radii_mm: Sequence[float], mask: np.ndarray | None
) -> tuple[float, float]:
    """Return the smallest and largest value."""
    if values.ndim != len(spacing) or values.ndim < 2 or min(values.shape) < 2:
        raise DataError(
            f"symmetry: an image of shape {values.shape} and spacing {list(spacing)} mm; expected two or three axes of "
            "at least two voxels, and one spacing for each."
        )
    if not len(radii_mm) or not all(0 < radius < math.inf for radius in radii_mm):
        raise ConfigError(f"radii_mm: expected positive millimetres, such as [1, 2, 3]; got {list(radii_mm)}.")
    if mask is not None and mask.shape != values.shape:
        raise DataError(f"symmetry: the mask has {mask.shape} voxels, the image {values.shape}: another grid.")
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise DataError("symmetry: the image holds NaN or infinite values; mend it first.")
    return low, high


def _padded(shape: Sequence[int], reach: Sequence[int]) -> list[int]:
    return [n + 2 * r for n, r in zip(shape, reach, strict=True)]


def _voters(
    values: np.ndarray, spacing: Sequence[float], steepest: float, mask: np.ndarray | None
) -> Iterator[tuple[slice, list[np.ndarray], np.ndarray]]:
    """Yield (slab of the first axis, unit vectors of its gradients per mm, the weight of each vote: 0 without one)."""
    depth = max(1, _SLAB // math.prod(values.shape[1:]))
    for first in range(0, values.shape[0], depth):
        slab = slice(first, min(first + depth, values.shape[0]))
        gradient = _gradient(values, slab, spacing)
        norm = gradient[0] * gradient[0]
        for derivative in gradient[1:]:
            norm += derivative * derivative
        np.sqrt(norm, out=norm)
        voting = norm > 0 if mask is None else (norm > 0) & mask[slab]
        inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=voting)
        for derivative in gradient:
            derivative *= inverse
        weight = np.rint(norm * np.float64(_STRENGTH / steepest))
        weight += _COUNT
        weight *= voting
        yield slab, gradient, weight


def _gradient(values: np.ndarray, slab: slice, spacing: Sequence[float]) -> list[np.ndarray]:
    """Return the derivatives along each axis per mm, float32: central differences, one-sided at the image's edges."""
    low, high = max(slab.start - 1, 0), min(slab.stop + 1, values.shape[0])
    part = np.asarray(values[low:high], dtype=np.float32)
    own = part[slab.start - low : slab.stop - low]
    first = _difference(part, 0, spacing[0])[slab.start - low : slab.stop - low]
    return [np.ascontiguousarray(first), *(_difference(own, axis, spacing[axis]) for axis in range(1, values.ndim))]


def _difference(part: np.ndarray, axis: int, step: float) -> np.ndarray:
    out = np.empty_like(part)
    source, target = np.moveaxis(part, axis, 0), np.moveaxis(out, axis, 0)
    if len(source) < 2:
        target[...] = 0
        return out
    np.subtract(source[2:], source[:-2], out=target[1:-1])
    target[1:-1] *= 0.5
    np.subtract(source[1], source[0], out=target[0])
    np.subtract(source[-1], source[-2], out=target[-1])
    out *= 1 / step
    return out


def _scatter(
    votes: np.ndarray,
    slab: slice,
    unit: Sequence[np.ndarray],
    weight: np.ndarray,
    offset: Sequence[float],
    reach: Sequence[int],
) -> None:
    """Add a slab's votes at `offset` voxels along the unit vectors to the padded array of votes."""
    shape = votes.shape
    kind = np.float32 if math.prod(shape[1:]) * (len(weight) + 2 * reach[0]) < 1 << 24 else np.float64
    place = np.zeros(weight.shape, dtype=kind)
    for axis, direction in enumerate(unit):
        stride = math.prod(shape[axis + 1 :])
        step = direction * kind(offset[axis])
        np.rint(step, out=step)
        step += (np.arange(weight.shape[axis], dtype=kind) + reach[axis]).reshape(
            [-1 if other == axis else 1 for other in range(weight.ndim)]
        )
        step *= kind(stride)
        place += step
    region = votes[slab.start : slab.stop + 2 * reach[0]].reshape(-1)
    region += np.bincount(place.ravel().astype(np.intp), weights=weight.ravel(), minlength=region.size)


def _symmetry(votes: np.ndarray, alpha: float) -> np.ndarray:
    """Return (count / most)^alpha · strength / strongest, float32, of the votes inside the image."""
    symmetry = np.zeros(votes.shape, dtype=np.float32)
    most, strongest = math.floor(float(votes.max()) / _COUNT), 0.0
    if most == 0:
        return symmetry
    for plane, target in zip(votes, symmetry, strict=True):
        count = np.floor(plane * (1 / _COUNT))
        strength = plane - count * _COUNT
        strongest = max(strongest, float(strength.max()))
        np.multiply((count * (1 / most)) ** alpha, strength, out=target, casting="same_kind")
    return np.divide(symmetry, np.float32(strongest), out=symmetry) if strongest > 0 else symmetry

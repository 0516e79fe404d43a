"""Radial symmetry: how much a place looks like the centre of a dark or bright ball, in any number of dimensions.

Loy and Zelinsky's transform (IEEE TPAMI 2003) with radii in millimetres: each voxel votes for the place at distance r
against its gradient (dark) or along it (bright), once by count and once by strength. Votes are scattered slab by slab,
so that a slab's arithmetic stays in the cache, and count and strength travel in one number.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from fmct.errors import ConfigError, DataError
from fmct.normalise import check_sign

BLUR = 0.25  # of the radius: the width of the Gaussian over the votes (Loy and Zelinsky)
_SLAB = 1 << 18  # voxels whose arrays fit into a second-level cache
_COUNT = float(1 << 36)  # a vote counts this much; its strength, in 2^-20 of the strongest, lies below
_STRENGTH = float(1 << 20)


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
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    _check(values, spacing, radii_mm, mask)
    strongest = _strongest_gradient(values, spacing, mask)
    total = np.zeros(values.shape, dtype=np.float32)
    if strongest == 0:
        return total
    for radius in radii_mm:
        reach = np.array([math.ceil(radius / step - 0.5) for step in spacing])
        votes = _votes(values, spacing, direction * radius, reach, strongest, mask)
        _add_symmetry(total, votes, reach, alpha, [blur * radius / step for step in spacing])
    if mask is not None:
        total[~mask] = 0.0
    highest = float(total.max())
    if highest > 0:
        total /= highest
    return total


def _check(values: np.ndarray, spacing: np.ndarray, radii_mm: Sequence[float], mask: np.ndarray | None) -> None:
    if values.ndim != len(spacing) or values.ndim < 2 or min(values.shape) < 2:
        raise DataError(
            f"symmetry: an image of shape {values.shape} and spacing {spacing.tolist()} mm; expected two or three axes "
            "of at least two voxels, and one spacing for each."
        )
    if not radii_mm or not all(0 < radius < math.inf for radius in radii_mm):
        raise ConfigError(f"radii_mm: expected positive millimetres, such as [1, 2, 3]; got {list(radii_mm)}.")
    if mask is not None and mask.shape != values.shape:
        raise DataError(f"symmetry: the mask has {mask.shape} voxels, the image {values.shape}: another grid.")


def _slabs(shape: Sequence[int]) -> list[slice]:
    """Return slices of the first axis of about _SLAB voxels each."""
    step = max(1, _SLAB // max(1, math.prod(shape[1:])))
    return [slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step)]


def _gradient(values: np.ndarray, slab: slice, spacing: np.ndarray) -> list[np.ndarray]:
    """Return the derivatives along each axis per mm, float32, of a slab; one-sided at the image's edges."""
    low, high = max(slab.start - 1, 0), min(slab.stop + 1, values.shape[0])
    part = np.asarray(values[low:high], dtype=np.float32)
    inner = slice(slab.start - low, slab.stop - low)
    first = np.gradient(part, spacing[0], axis=0)[inner]
    own = part[inner]
    rest = [np.gradient(own, spacing[axis], axis=axis) for axis in range(1, values.ndim)]
    return [derivative.astype(np.float32, copy=False) for derivative in (first, *rest)]


def _norm(gradient: Sequence[np.ndarray]) -> np.ndarray:
    squared = gradient[0] * gradient[0]
    for derivative in gradient[1:]:
        squared += derivative * derivative
    return np.sqrt(squared, out=squared)


def _strongest_gradient(values: np.ndarray, spacing: np.ndarray, mask: np.ndarray | None) -> float:
    strongest = 0.0
    for slab in _slabs(values.shape):
        norm = _norm(_gradient(values, slab, spacing))
        if not np.isfinite(norm).all():
            raise DataError("symmetry: the image holds NaN or infinite values; read or mend it first.")
        strongest = max(strongest, float(norm.max() if mask is None else norm[mask[slab]].max(initial=0.0)))
    return strongest


def _votes(
    values: np.ndarray,
    spacing: np.ndarray,
    radius: float,
    reach: np.ndarray,
    strongest: float,
    mask: np.ndarray | None,
) -> np.ndarray:
    """Return count · _COUNT + strength · _STRENGTH of the votes for each voxel, the image padded by `reach`."""
    padded = [n + 2 * int(r) for n, r in zip(values.shape, reach, strict=True)]
    votes = np.zeros(padded, dtype=np.float64)
    strides = [math.prod(padded[axis + 1 :]) for axis in range(values.ndim)]
    for slab in _slabs(values.shape):
        gradient = _gradient(values, slab, spacing)
        norm = _norm(gradient)
        voting = norm > 0
        if mask is not None:
            voting &= mask[slab]
        inverse = np.divide(radius, norm, out=norm.copy(), where=voting)
        target = np.zeros(norm.shape, dtype=np.int64)
        for axis, derivative in enumerate(gradient):
            step = np.rint(derivative * inverse / np.float32(spacing[axis])).astype(np.int64)
            step += (np.arange(norm.shape[axis]) + reach[axis]).reshape(
                [-1 if a == axis else 1 for a in range(norm.ndim)]
            )
            step *= strides[axis]
            target += step
        weights = np.rint(norm * np.float64(_STRENGTH / strongest)) + _COUNT
        region = votes[slab.start : slab.stop + 2 * int(reach[0])].reshape(-1)
        region += np.bincount(target[voting], weights=weights[voting], minlength=region.size)
    return votes


def _add_symmetry(
    total: np.ndarray, votes: np.ndarray, reach: np.ndarray, alpha: float, sigma: Sequence[float]
) -> None:
    """Add (count / largest)^alpha · strength / largest, blurred, of the votes inside the image."""
    inner = votes[tuple(slice(int(r), n - int(r)) for r, n in zip(reach, votes.shape, strict=True))]
    count = np.floor(inner / _COUNT)
    strength = inner - count * _COUNT
    most, strongest = float(count.max()), float(strength.max())
    if most == 0 or strongest == 0:
        return
    symmetry = ((count / most) ** alpha * (strength / strongest)).astype(np.float32)
    total += ndimage.gaussian_filter(symmetry, sigma)

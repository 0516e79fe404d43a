"""What each output of a resampled axis takes of which input voxels: linear interpolation, splines, blur, ringing.

An image is separable in its grid: a view's z, y and x positions do not depend on each other. Each axis is therefore a
matrix (output positions × input voxels), and flips, Gaussian blur and what lies outside the scan are in its rows. Where
a row has few entries, only these are kept. fmct.resample applies the axes to a box of voxels.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True)
class Sparse:
    """A resampling of which each output reads few inputs: output i = sum over k of shares[i, k] · input[taps[i, k]].

    taps: (outputs, K) int64, in order along a row; shares: (outputs, K) float32, a row's sum is the share of the output
    that lies inside the scan, the rest is air; inputs: voxels along the axis; inside: every sum is one, so that no air
    is mixed in.
    """

    taps: np.ndarray
    shares: np.ndarray
    inputs: int
    inside: bool

    def __len__(self) -> int:
        return len(self.taps)

    @cached_property
    def matrix(self) -> np.ndarray:
        """The same as output = matrix @ input, (outputs, inputs) float32."""
        matrix, rows = np.zeros((len(self), self.inputs), dtype=np.float32), np.arange(len(self))
        for taps, shares in zip(self.taps.T, self.shares.T, strict=True):
            matrix[rows, taps] += shares
        return matrix

    def hulls(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and the last input that each run of outputs reads; a run goes from a start to the next."""
        return np.minimum.reduceat(self.taps[:, 0], starts), np.maximum.reduceat(self.taps[:, -1], starts)


@dataclass(frozen=True)
class Dense:
    """Any resampling of an axis: output = matrix @ input.

    matrix: (outputs, inputs) float32; the sums of its rows and `inside` are as in Sparse.
    """

    matrix: np.ndarray
    inside: bool

    def __len__(self) -> int:
        return len(self.matrix)

    def hulls(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and the last input that each run of outputs reads; a run goes from a start to the next."""
        first, last = _ends_of_rows(self.matrix)
        high = np.maximum.reduceat(last, starts)
        return np.minimum(np.minimum.reduceat(first, starts), high), high


Axis: TypeAlias = Sparse | Dense


def bands(axis: Axis, outputs_per_band: int) -> list[tuple[slice, slice]]:
    """Return [(outputs, inputs)]: runs of outputs and the only inputs that their rows read, at least one."""
    starts = np.arange(0, len(axis), outputs_per_band)
    low, high = axis.hulls(starts)
    return [
        (slice(start, min(start + outputs_per_band, len(axis))), slice(first, last + 1))
        for start, first, last in zip(starts.tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def linear_axis(positions: np.ndarray, inputs: int, *, low: float = -0.5, high: float | None = None) -> Sparse:
    """Return the linear interpolation of `inputs` voxels at fractional `positions` (outputs,).

    low, high: the extent of the scan in the same coordinate (default: half a voxel beyond the outer centres). Within
    it the outermost voxel reaches to the edge; beyond it is air (a row of zeros).
    """
    high = inputs - 0.5 if high is None else high
    clamped = np.minimum(np.maximum(positions, 0), inputs - 1)
    lower = np.minimum(clamped.astype(np.int64), max(inputs - 2, 0))
    fraction = clamped - lower
    # Positions come from products of millimetres: a hair over the edge is still the edge.
    present = (positions >= low - 1e-6) & (positions <= high + 1e-6)
    inside = bool(present.all())
    taps = np.stack([lower, np.minimum(lower + 1, inputs - 1)], axis=1)
    shares = np.stack([1 - fraction, fraction], axis=1).astype(np.float32)
    if not inside:
        shares[~present] = 0
    return Sparse(taps, shares, inputs, inside)


def spline_axis(positions: np.ndarray, inputs: int) -> Dense:
    """Return the cubic B-spline interpolation of `inputs` voxels at fractional `positions` (outputs,).

    Beyond the outermost voxels their value goes on. Equal to scipy.ndimage.map_coordinates with order 3 and mode
    nearest: interpolating coefficients (Unser 1999) of the line continued by 12 voxels, then four weights a position.
    """
    margin = 12  # the prefilter's response has then fallen to 1e-7
    length = inputs + 2 * margin
    line = np.clip(np.arange(length) - margin, 0, inputs - 1)
    filtered = np.linalg.inv((4 * np.eye(length) + np.eye(length, k=1) + np.eye(length, k=-1)) / 6)
    coefficients = np.zeros((length, inputs))
    np.add.at(coefficients.T, line, filtered.T)
    places = np.clip(positions, -margin / 2, inputs - 1 + margin / 2) + margin
    lower = np.floor(places).astype(np.int64)
    t = (places - lower)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    rows = np.asarray(sum(weights[:, [k]] * coefficients[lower - 1 + k] for k in range(4)))
    rows[np.abs(rows) < 1e-8] = 0.0  # the prefilter's tails, so that a row reads some thirty voxels and not the line
    return Dense(rows.astype(np.float32), True)


def blurred(axis: Axis, sigma: float) -> Axis:
    """Return `axis` followed by a Gaussian of `sigma` output voxels, cut at 4 σ and renormalised at the view's ends."""
    if sigma <= 0:
        return axis
    reach = max(1, round(4 * sigma))
    matrix = _gaussian(len(axis), sigma, reach) @ axis.matrix
    if isinstance(axis, Dense):
        return Dense(matrix, axis.inside)
    first, last = _ends_of_rows(matrix)
    count = max(1, int((last - first).max()) + 1)
    taps = np.minimum(first, axis.inputs - count)[:, None] + np.arange(count)
    return Sparse(taps, np.take_along_axis(matrix, taps, axis=1), axis.inputs, axis.inside)


def _ends_of_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of each row's first and last entry but zero; (the last place, 0) where there is none."""
    used = matrix != 0
    end = used.shape[1] - 1
    empty = ~used.any(axis=1)
    return np.where(empty, end, used.argmax(axis=1)), np.where(empty, 0, end - used[:, ::-1].argmax(axis=1))


@lru_cache(maxsize=64)  # the three axes of a view are blurred alike
def _gaussian(outputs: int, sigma: float, reach: int) -> np.ndarray:
    """Return the blur of so many outputs among themselves, (outputs, outputs) float32; sigma and reach in outputs."""
    places = np.arange(outputs)
    distance = places[:, None] - places[None, :]
    kernel = np.where(np.abs(distance) <= reach, np.exp(-0.5 * (distance / sigma) ** 2), 0)
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)


def truncated(axis: Axis, kept: float) -> Dense:
    """Return `axis` followed by an ideal low-pass that keeps the share `kept` of the frequencies: Gibbs ringing.

    The signal is mirrored at the view's ends (a cosine transform), so that nothing wraps around.
    """
    n = len(axis)
    order, place = np.arange(max(1, round(kept * n)))[:, None], np.arange(n)[None, :]
    basis = np.cos(np.pi * order * (place + 0.5) / n) * np.where(order == 0, np.sqrt(1 / n), np.sqrt(2 / n))
    return Dense((basis.T @ basis @ axis.matrix.astype(np.float64)).astype(np.float32), axis.inside)

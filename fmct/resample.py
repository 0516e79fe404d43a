"""Separable linear resampling of a box of voxels, as one small matrix per axis.

An image is separable in its grid: a view's z, y and x positions do not depend on each other. Each axis is therefore a
matrix (output positions × input voxels), and flips, Gaussian blur and what lies outside the scan are in its rows, at
no cost. Matrix products run near the arithmetic peak. Plain interpolation along y on a CPU mixes whole rows instead,
two at a time: its products would be many and small. Along z a line for each channel, slope · value + bias, costs
nothing more either: the slope is in the matrix, the bias the weight of a slice of ones.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from fmct.shapes import Triple

_OUTPUTS_PER_BAND = {0: 12, 1: 32, 2: 16}  # by axis z, y, x; measured, as are the two below
_SLICES_OUT = 24  # output slices finished together: fewer pay more calls, more leave the cache
_SLICES_IN_PLANE = 24  # input slices resampled together: they stay in the cache on the way from one axis to the next
_SLICES_MIXED = 5  # of them, mixed along y together: what is mixed lies in three places
_FEWER_ROWS = 1.15  # y before x where it leaves so many times fewer rows for the products along x
_SCRATCH_ELEMENTS = 16 << 20  # 64 MiB a buffer: a crop of 256³ voxels
_THREAD = threading.local()


@dataclass(frozen=True)
class Pairs:
    """Linear interpolation: output = (1 − fraction) · input[lower] + fraction · input[lower + 1], 0 where not present.

    lower: (outputs,) int64; fraction: (outputs,) float32; present: (outputs,) bool.
    """

    lower: np.ndarray
    fraction: np.ndarray
    present: np.ndarray


@dataclass(frozen=True)
class Axis:
    """Resampling of one axis: output = weights @ input. weights: (outputs, inputs) float32.

    A row's sum is the share of the output that lies inside the scan; the rest is air. inside: every row's sum is one,
    so that no air is mixed in. pairs: the same for an axis whose rows mix two neighbours or are empty.
    """

    weights: np.ndarray
    inside: bool
    pairs: Pairs | None = None

    def bands(self, outputs_per_band: int) -> list[tuple[slice, slice]]:
        """Return [(outputs, inputs)]: runs of outputs and the only inputs that their rows read, at least one."""
        used = self.weights != 0
        inputs = used.shape[1]
        empty = ~used.any(axis=1)
        first = np.where(empty, inputs - 1, used.argmax(axis=1))
        last = np.where(empty, 0, inputs - 1 - used[:, ::-1].argmax(axis=1))
        starts = range(0, len(used), outputs_per_band)
        low = np.minimum.reduceat(first, starts).tolist()
        high = np.maximum.reduceat(last, starts).tolist()
        return [
            (slice(start, min(start + outputs_per_band, len(used))), slice(min(a, b), b + 1))
            for start, a, b in zip(starts, low, high, strict=True)
        ]


@dataclass(frozen=True)
class Line:
    """What becomes of a resampled value v: clamp(slope · v + bias, low, high)."""

    slope: float
    bias: float
    low: float
    high: float


def linear_axis(positions: np.ndarray, inputs: int, *, low: float = -0.5, high: float | None = None) -> Axis:
    """Return the linear interpolation of `inputs` voxels at fractional `positions` (outputs,).

    low, high: the extent of the scan in the same coordinate (default: half a voxel beyond the outer centres). Within
    it the outermost voxel reaches to the edge; beyond it is air (an empty row).
    """
    high = inputs - 0.5 if high is None else high
    clamped = np.clip(positions, 0, inputs - 1)
    lower = np.minimum(clamped.astype(np.int64), max(inputs - 2, 0))
    fraction = clamped - lower
    rows = np.arange(len(positions))
    # Positions come from products of millimetres: a hair over the edge is still the edge.
    present = (positions >= low - 1e-6) & (positions <= high + 1e-6)
    weights = np.zeros((len(positions), inputs), dtype=np.float64)
    weights[rows, lower] = np.where(present, 1 - fraction, 0)
    weights[rows, np.minimum(lower + 1, inputs - 1)] += np.where(present, fraction, 0)
    pairs = Pairs(lower, fraction.astype(np.float32), present) if inputs > 1 else None
    return Axis(weights.astype(np.float32), bool(present.all()), pairs)


def spline_axis(positions: np.ndarray, inputs: int) -> Axis:
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
    return Axis(rows.astype(np.float32), True)


def blurred(axis: Axis, sigma: float) -> Axis:
    """Return `axis` followed by a Gaussian of `sigma` output voxels, cut at 4 σ and renormalised at the view's ends."""
    if sigma <= 0:
        return axis
    outputs = np.arange(len(axis.weights))
    distance = outputs[:, None] - outputs[None, :]
    kernel = np.where(np.abs(distance) <= max(1, round(4 * sigma)), np.exp(-0.5 * (distance / sigma) ** 2), 0)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return Axis((kernel @ axis.weights.astype(np.float64)).astype(np.float32), axis.inside)


def truncated(axis: Axis, kept: float) -> Axis:
    """Return `axis` followed by an ideal low-pass that keeps the share `kept` of the frequencies: Gibbs ringing.

    The signal is mirrored at the view's ends (a cosine transform), so that nothing wraps around.
    """
    n = len(axis.weights)
    order, place = np.arange(max(1, round(kept * n)))[:, None], np.arange(n)[None, :]
    basis = np.cos(np.pi * order * (place + 0.5) / n) * np.where(order == 0, np.sqrt(1 / n), np.sqrt(2 / n))
    return Axis((basis.T @ basis @ axis.weights.astype(np.float64)).astype(np.float32), axis.inside)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Run float32 matrix products in float32: neither autocast nor TF32 may round HU to 8 or 11 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def resample_in_plane(voxels: torch.Tensor, y: Axis, x: Axis, *, air: float, spare: int = 0) -> torch.Tensor:
    """Return (D, H, W) float32 voxels minus `air`, resampled along y and x: (spare + D, outputs y, outputs x).

    Relative to air, so that what lies outside the scan is zero. The first `spare` slices are uninitialised. On a CPU
    the result is this thread's scratch memory: it holds until the next call.
    """
    depth, height, width = voxels.shape
    device, inside = voxels.device, y.inside and x.inside
    columns = [(outputs, inputs, weights.T) for outputs, inputs, weights in _products(x, device, 2)]
    rows = None if _mixes_rows(y, device) else _products(y, device, 1)
    y_first = rows is None and height > _FEWER_ROWS * len(y.weights)
    planes = scratch("planes", (spare + depth, len(y.weights), len(x.weights)), device)
    together = min(depth, _SLICES_IN_PLANE) if device.type == "cpu" else depth
    images = scratch("image", (together, height, width), device)
    shape = (together, len(y.weights), width) if y_first else (together, height, len(x.weights))
    halves = scratch("half", shape, device)  # resampled along the first of the two axes
    for part, result in zip(voxels.split(together), planes[spare:].split(together), strict=True):
        image, half = images[: part.shape[0]], halves[: part.shape[0]]
        image.copy_(part)
        if not inside:
            image.sub_(air)
        if y_first:
            _along_x(_mix_rows(image, y, out=half), columns, out=result)
        else:
            _along_y(_along_x(image, columns, out=half), y, rows, out=result)
        if inside and air:
            result.sub_(air)
    return planes


def _products(axis: Axis, device: torch.device, number: int) -> list[tuple[slice, slice, torch.Tensor]]:
    """Return bands of an axis as (outputs, inputs, weights of these)."""
    weights = torch.from_numpy(axis.weights).to(device, non_blocking=True)
    return [(outputs, inputs, weights[outputs, inputs]) for outputs, inputs in _bands(axis, device, number)]


def _along_x(
    image: torch.Tensor, columns: Sequence[tuple[slice, slice, torch.Tensor]], *, out: torch.Tensor
) -> torch.Tensor:
    """Write (D, H, W) resampled along its last axis to `out`, and return it."""
    source, target = image.flatten(0, 1), out.flatten(0, 1)
    for outputs, inputs, weights in columns:
        torch.mm(source[:, inputs], weights, out=target[:, outputs])
    return out


def _along_y(
    image: torch.Tensor, y: Axis, rows: Sequence[tuple[slice, slice, torch.Tensor]] | None, *, out: torch.Tensor
) -> torch.Tensor:
    """Write (D, H, W) resampled along its middle axis to `out`, and return it; rows None: row by row."""
    if rows is None:
        return _mix_rows(image, y, out=out)
    for outputs, inputs, weights in rows:
        torch.bmm(weights.expand(len(image), -1, -1), image[:, inputs], out=out[:, outputs])
    return out


def resample_slices(planes: torch.Tensor, z: Axis, outputs: slice, *, out: torch.Tensor) -> torch.Tensor:
    """Write the slices `outputs` of planes (D, P) float32 resampled along z to `out` (slices, P), and return it."""
    for rows, inputs, weights in _products(Axis(z.weights[outputs], z.inside), planes.device, 0):
        torch.mm(weights, planes[inputs], out=out[rows])
    return out


def write_lines(planes: torch.Tensor, z: Axis, lines: Sequence[Line], *, out: torch.Tensor) -> None:
    """Write what each of C lines makes of planes (1 + D, P) float32 resampled along z to out (C, slices, P).

    The first slice is spare. Slices that are no longer needed are overwritten.
    """
    slopes = np.array([[[line.slope]] for line in lines], dtype=np.float32)
    biases = np.array([[line.bias] for line in lines], dtype=np.float32)
    bands = _bands(z, planes.device, 0)
    targets = [part.unbind() for part in out.split(bands[0][0].stop, dim=1)]
    for (outputs, inputs), target in sorted(zip(bands, targets, strict=True), key=lambda band: band[0][1].start):
        rows = z.weights[outputs, inputs]
        weights = np.empty((len(lines), len(rows), 1 + rows.shape[1]), dtype=np.float32)
        weights[:, :, 0] = biases
        np.multiply(rows, slopes, out=weights[:, :, 1:])
        source = planes[inputs.start : inputs.stop + 1]
        # Bands come in the order of their inputs: the slice before a band's first is needed by none that is to come.
        source[0].fill_(1.0)
        each = torch.from_numpy(weights).to(planes.device).unbind()
        for line, weight, result in zip(lines, each, target, strict=True):
            torch.mm(weight, source, out=result).clamp_(line.low, line.high)


def slabs(slices: int, device: torch.device) -> list[slice]:
    """Return runs of slices to be finished together: few enough for a CPU's cache, all of them elsewhere."""
    together = _SLICES_OUT if device.type == "cpu" else slices
    return [slice(start, min(start + together, slices)) for start in range(0, slices, together)]


def _mixes_rows(axis: Axis, device: torch.device) -> bool:
    """Return whether rows in sequence are mixed one by one; on another device a launch of a product is cheaper."""
    return axis.pairs is not None and device.type == "cpu"


def _mix_rows(source: torch.Tensor, y: Axis, *, out: torch.Tensor) -> torch.Tensor:
    """Write (D, H, W) interpolated along its middle axis by the axis's pairs to `out`, and return it."""
    pairs = y.pairs
    assert pairs is not None, "an axis of more than two neighbours a row is a product"
    lower, fraction = torch.from_numpy(pairs.lower), torch.from_numpy(pairs.fraction)[:, None]
    above = lower + 1
    together = min(_SLICES_MIXED, source.shape[0])
    low, high = (scratch(name, (together, *out.shape[1:]), source.device) for name in ("below", "above"))
    for part, result in zip(source.split(together), out.split(together), strict=True):
        count = part.shape[0]
        one, other = (low, high) if count == together else (low[:count], high[:count])
        torch.index_select(part, 1, lower, out=one)
        torch.index_select(part, 1, above, out=other)
        torch.lerp(one, other, fraction, out=result)
    if not y.inside:
        out.index_fill_(1, torch.from_numpy(np.flatnonzero(~pairs.present)), 0.0)
    return out


def scratch(name: str, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return uninitialised float32 memory; on a CPU the same for every call of this thread and name.

    Fresh memory of some megabytes costs more in page faults than what is computed in it.
    """
    size = math.prod(shape)
    if device.type != "cpu" or size > _SCRATCH_ELEMENTS:
        return torch.empty(tuple(shape), device=device)
    buffers: dict[str, torch.Tensor] = _THREAD.__dict__.setdefault("buffers", {})
    if name not in buffers or buffers[name].numel() < size:
        with torch.inference_mode(False):  # memory made in inference mode could not be written to outside of it
            buffers[name] = torch.from_numpy(np.empty(size, dtype=np.float32))  # numpy asks for huge pages
    return buffers[name][:size].view(*shape)


def resample(
    voxels: torch.Tensor, axes: Sequence[Axis], *, air: float = -1000.0, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (D, H, W) voxels of any real type resampled along `axes` (z, y, x), float32; air fills what is outside."""
    z, y, x = axes
    with exact_products(voxels.device):
        planes = resample_in_plane(voxels, y, x, air=air)
        shape = (len(z.weights), len(y.weights), len(x.weights))
        image = torch.empty(shape, device=voxels.device) if out is None else out
        flat, result = planes.view(len(planes), -1), image.view(len(image), -1)
        for outputs in slabs(len(image), voxels.device):
            resample_slices(flat, z, outputs, out=result[outputs]).add_(air)
    return image


def sample_box(
    voxels: torch.Tensor, first: Sequence[float], step: Sequence[float], size: Triple, *, air: float = -1000.0
) -> torch.Tensor:
    """Return `size` voxels, float32, at voxel indices first + step · i along (z, y, x); a negative step flips."""
    axes = [
        linear_axis(f + s * np.arange(n), length)
        for f, s, n, length in zip(first, step, size, voxels.shape, strict=True)
    ]
    return resample(voxels, axes, air=air)


def _bands(axis: Axis, device: torch.device, number: int) -> list[tuple[slice, slice]]:
    """Return bands that fit a CPU's cache; another device takes the axis whole, since there a launch costs more."""
    return axis.bands(_OUTPUTS_PER_BAND[number] if device.type == "cpu" else len(axis.weights))

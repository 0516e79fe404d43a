"""Separable linear resampling of a box of voxels: one axis after the other, each a small matrix (fmct.axes).

Matrix products run near the arithmetic peak. But plain interpolation has two entries in a row, and blurred some ten:
along y and z a CPU sums so few as torch's embedding bags do, which read whole rows and slices where they lie. Along x
what is summed lies within a row, and the product is faster all the same.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch

from fmct.axes import Axis, Dense, Sparse, bands, linear_axis
from fmct.shapes import Triple

_OUTPUTS_PER_BAND = {0: 12, 1: 32, 2: 16}  # by axis z, y, x; measured, as are the three below
_MOST_TAPS = {0: 4, 1: 24}  # by axis z, y: of a row that is summed tap by tap
_VOXELS_IN_PLANE = 600_000  # voxels resampled in plane together: they stay in the cache from one axis to the next
_VOXELS_OUT = 450_000  # of a result, finished together: fewer pay more calls, more leave the cache
_SCRATCH_ELEMENTS = 16 << 20  # 64 MiB a buffer: a crop of 256³ voxels
_THREAD = threading.local()


@dataclass(frozen=True)
class Line:
    """What becomes of a resampled value v: clamp(slope · v + bias, low, high)."""

    slope: float
    bias: float
    low: float
    high: float


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


def resample(
    voxels: torch.Tensor, axes: Sequence[Axis], *, air: float = -1000.0, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (D, H, W) voxels of any real type resampled along `axes` (z, y, x), float32; air fills what is outside."""
    z, y, x = axes
    with exact_products(voxels.device):
        planes = resample_in_plane(voxels, y, x, air=air).flatten(1)
        image = torch.empty((len(z), len(y), len(x)), device=voxels.device) if out is None else out
        result = image.view(len(z), -1)
        for outputs in _slabs(planes, len(z)):
            torch.add(_along_z(planes, z, outputs), air, out=result[outputs])
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


def write_lines(planes: torch.Tensor, z: Axis, lines: Sequence[Line], *, out: torch.Tensor) -> None:
    """Write what each of C lines makes of planes (D, P) float32 resampled along z to out (C, slices, P)."""
    biases = torch.tensor([line.bias for line in lines], device=planes.device).unbind()
    for outputs in _slabs(planes, len(z)):
        values = _along_z(planes, z, outputs)
        for line, bias, result in zip(lines, biases, out[:, outputs], strict=True):
            torch.add(bias, values, alpha=line.slope, out=result).clamp_(line.low, line.high)


def resample_in_plane(voxels: torch.Tensor, y: Axis, x: Axis, *, air: float) -> torch.Tensor:
    """Return (D, H, W) float32 voxels minus `air`, resampled along y and x: (D, outputs y, outputs x).

    Relative to air, so that what lies outside the scan is zero. On a CPU the result is this thread's scratch memory:
    it holds until the next call.
    """
    depth, height, width = voxels.shape
    device, inside = voxels.device, y.inside and x.inside
    together = _together(depth, height * width, _VOXELS_IN_PLANE, device)
    columns = [(outputs, inputs, weights.T) for outputs, inputs, weights in _products(x, device, 2)]
    rows = _RowSums.of(y, height, together) if _sums_taps(y, device, 1) else None
    products = [] if rows else _products(y, device, 1)
    planes = scratch("planes", (depth, len(y), len(x)), device)
    images = scratch("image", (together, height, width), device)
    halves = scratch("half", (together, height, len(x)), device)
    for part, result in zip(voxels.split(together), planes.split(together), strict=True):
        image, half = images[: len(part)], halves[: len(part)]
        image.copy_(part)
        if not inside:
            image.sub_(air)
        if rows and height > len(y):  # y first leaves fewer rows for the products along x
            _along_x(rows.sums(image), columns, out=result)
        elif rows:
            result.copy_(rows.sums(_along_x(image, columns, out=half)))
        else:
            _along_y(_along_x(image, columns, out=half), products, out=result)
        if inside and air:
            result.sub_(air)
    return planes


@dataclass(frozen=True)
class _RowSums:
    """An axis y for all rows of up to so many slices, one after the other: taps and shares (slices · rows, K)."""

    taps: torch.Tensor
    shares: torch.Tensor
    rows: int

    @staticmethod
    def of(y: Sparse, height: int, slices: int) -> "_RowSums":
        """Return the sums of `slices` of `height` rows each."""
        first = height * np.arange(slices)[:, None, None]
        taps = (first + y.taps).reshape(-1, y.taps.shape[1])
        return _RowSums(torch.from_numpy(taps), torch.from_numpy(np.tile(y.shares, (slices, 1))), len(y))

    def sums(self, image: torch.Tensor) -> torch.Tensor:
        """Return (D, H, W) resampled along its middle axis."""
        depth, _, width = image.shape
        count = depth * self.rows
        return _sums(image.view(-1, width), self.taps[:count], self.shares[:count]).view(depth, self.rows, width)


def _sums(source: torch.Tensor, taps: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return (n, W): row i is the sum over k of shares[i, k] times row taps[i, k] of the source (R, W)."""
    count, each = taps.shape
    starts = torch.arange(0, count * each, each)
    # The operator itself: functional.embedding_bag's checks cost as much as a slice. Mode 0 is the sum.
    return torch.embedding_bag(source, taps.view(-1), starts, mode=0, per_sample_weights=shares.view(-1))[0]


def _along_x(
    image: torch.Tensor, columns: Sequence[tuple[slice, slice, torch.Tensor]], *, out: torch.Tensor
) -> torch.Tensor:
    """Write (D, H, W) resampled along its last axis to `out`, and return it."""
    source, target = image.flatten(0, 1), out.flatten(0, 1)
    for outputs, inputs, weights in columns:
        torch.mm(source[:, inputs], weights, out=target[:, outputs])
    return out


def _along_y(
    image: torch.Tensor, rows: Sequence[tuple[slice, slice, torch.Tensor]], *, out: torch.Tensor
) -> torch.Tensor:
    """Write (D, H, W) resampled along its middle axis to `out`, and return it."""
    for outputs, inputs, weights in rows:
        torch.bmm(weights.expand(len(image), -1, -1), image[:, inputs], out=out[:, outputs])
    return out


def _along_z(planes: torch.Tensor, z: Axis, outputs: slice) -> torch.Tensor:
    """Return the slices `outputs` of planes (D, P) float32 resampled along z: (slices, P)."""
    if _sums_taps(z, planes.device, 0):
        return _sums(planes, torch.from_numpy(z.taps[outputs]), torch.from_numpy(z.shares[outputs]))
    part = Dense(z.matrix[outputs], z.inside)
    result = planes.new_empty((len(part), planes.shape[1]))
    for slices, inputs, weights in _products(part, planes.device, 0):
        torch.mm(weights, planes[inputs], out=result[slices])
    return result


def _slabs(planes: torch.Tensor, slices: int) -> list[slice]:
    """Return runs of output slices to be finished together: few enough for a CPU's cache, all of them elsewhere."""
    together = _together(slices, planes.shape[1], _VOXELS_OUT, planes.device)
    return [slice(start, min(start + together, slices)) for start in range(0, slices, together)]


def _together(slices: int, size: int, most: int, device: torch.device) -> int:
    """Return how many of `slices` of `size` voxels to take at once: about `most` voxels on a CPU, in even parts."""
    parts = math.ceil(slices / max(1, most // size)) if device.type == "cpu" else 1
    return math.ceil(slices / parts)


def _products(axis: Axis, device: torch.device, number: int) -> list[tuple[slice, slice, torch.Tensor]]:
    """Return bands of an axis as (outputs, inputs, weights of these).

    They fit a CPU's cache; another device takes the axis whole, since there a launch costs more.
    """
    together = _OUTPUTS_PER_BAND[number] if device.type == "cpu" else len(axis)
    return [
        (outputs, inputs, torch.from_numpy(axis.matrix[outputs, inputs]).to(device, non_blocking=True))
        for outputs, inputs in bands(axis, together)
    ]


def _sums_taps(axis: Axis, device: torch.device, number: int) -> TypeGuard[Sparse]:
    """Return whether outputs are summed tap by tap; on another device one launch of a product is cheaper."""
    return device.type == "cpu" and isinstance(axis, Sparse) and axis.taps.shape[1] <= _MOST_TAPS[number]


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

"""Render labelled windows from their crops: scan, paired scan, lesion share and validity on one grid, on any device.

A straight window is resampled by the separable matrices that views take. Lesion shares are box means over each window
voxel's own extent, so that volume is kept and a lesion smaller than a voxel does not fall between two samples. A turned
window is interpolated trilinearly.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from fmct import randomness
from fmct.axes import Dense, blurred, linear_axis
from fmct.data.appearance import Appearance
from fmct.data.mask_bank import MASK_SCALE
from fmct.data.window_place import CropPlan
from fmct.resample import exact_products, resample
from fmct.shapes import Triple
from fmct.windows import Curve, Window

_EDGE = 1e-6  # voxels: a hair over the scan's edge is still the edge


def render_scan(
    crop: torch.Tensor, plan: CropPlan, size: Triple, look: Appearance, windows: Sequence[Window | Curve]
) -> torch.Tensor:
    """Return (C, D, H, W) float32 window values of an int16 crop."""
    with exact_products(crop.device):
        image = intensities(crop, plan, size)
        return _shown(_changed(image, look), look, windows)


def intensities(crop: torch.Tensor, plan: CropPlan, size: Triple) -> torch.Tensor:
    """Return the window's intensities (D, H, W), float32 in the scan's units, as they are; `plan.air` is outside."""
    order = plan.order
    if order is not None:
        axes = [
            linear_axis(_positions(plan, a, order, size), plan.shape[a], low=plan.low[a], high=plan.high[a])
            for a in range(3)
        ]
        image = resample(crop, axes, air=plan.air / plan.scale)
        return _to_window(image, order).mul(plan.scale)
    coordinates = _coordinates(plan, size, crop.device)
    image = _interpolated(crop, coordinates).mul_(plan.scale)
    return torch.where(_inside(coordinates, plan), image, plan.air)


def lesion_share(crop: torch.Tensor, plan: CropPlan, size: Triple) -> torch.Tensor:
    """Return the lesion's share of each window voxel (D, H, W), float32 in 0 … 1."""
    order = plan.order
    with exact_products(crop.device):
        if order is None:
            coordinates = _coordinates(plan, size, crop.device)
            share = _interpolated(crop, coordinates) * _inside(coordinates, plan)
        else:
            axes = []
            for a in range(3):
                positions = _positions(plan, a, order, size)
                axes.append(box_axis(positions, abs(float(plan.matrix[a, order[a]])), plan.shape[a]))
            share = _to_window(resample(crop, axes, air=0.0), order)
        return (share / MASK_SCALE).clamp_(0, 1)


def validity(plan: CropPlan, size: Triple, device: torch.device | str) -> torch.Tensor:
    """Return (D, H, W) float32: 1 where a window voxel's centre lies inside the volume, else 0."""
    order = plan.order
    if order is None:
        return _inside(_coordinates(plan, size, device), plan).float()
    lines = []
    for a in range(3):
        positions = _positions(plan, a, order, size)
        lines.append((positions >= plan.low[a] - _EDGE) & (positions <= plan.high[a] + _EDGE))
    z, y, x = (torch.from_numpy(line.astype(np.float32)).to(device) for line in lines)
    return _to_window(z[:, None, None] * y[None, :, None] * x[None, None, :], order).contiguous()


def box_axis(positions: np.ndarray, width: float, inputs: int) -> Dense:
    """Return the mean of `inputs` voxels over [position − width/2, position + width/2]; nothing lies outside them."""
    low, high = (positions - width / 2)[:, None], (positions + width / 2)[:, None]
    voxels = np.arange(inputs)[None, :]
    shared = np.minimum(high, voxels + 0.5) - np.maximum(low, voxels - 0.5)
    return Dense((np.maximum(shared, 0) / width).astype(np.float32), inside=False)


def _positions(plan: CropPlan, axis: int, order: Triple, size: Triple) -> np.ndarray:
    """Return the crop coordinate along a crop axis of every window voxel of the window axis that runs along it."""
    along = order[axis]
    # The off-axis steps are rounding; they count at the window's middle, where they do least.
    rest = sum(plan.matrix[axis, other] * (size[other] - 1) / 2 for other in range(3) if other != along)
    return plan.matrix[axis, 3] + rest + plan.matrix[axis, along] * np.arange(size[along])


def _to_window(image: torch.Tensor, order: Triple) -> torch.Tensor:
    """Return an image whose axes are the crop's with the window's axes: crop axis a is window axis order[a]."""
    if order == (0, 1, 2):
        return image
    return image.permute(*(order.index(axis) for axis in range(3)))


def _coordinates(plan: CropPlan, size: Triple, device: torch.device | str) -> torch.Tensor:
    """Return crop coordinates (D, H, W, 3) float32 of the window's voxels."""
    matrix = torch.from_numpy(plan.matrix.astype(np.float32)).to(device)
    z, y, x = (torch.arange(n, dtype=torch.float32, device=device) for n in size)
    return (
        z[:, None, None, None] * matrix[:, 0]
        + y[None, :, None, None] * matrix[:, 1]
        + x[None, None, :, None] * matrix[:, 2]
        + matrix[:, 3]
    )


def _inside(coordinates: torch.Tensor, plan: CropPlan) -> torch.Tensor:
    low = torch.tensor(plan.low, dtype=torch.float32, device=coordinates.device) - 1e-4
    high = torch.tensor(plan.high, dtype=torch.float32, device=coordinates.device) + 1e-4
    return ((coordinates >= low) & (coordinates <= high)).all(-1)


def _interpolated(crop: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Return trilinear values (D, H, W) float32; beyond the outermost voxels the nearest one holds."""
    last = torch.tensor([max(n - 1, 1) for n in crop.shape], dtype=torch.float32, device=crop.device)
    grid = (2 * coordinates / last - 1).flip(-1)[None]  # grid_sample takes x, y, z
    values = F.grid_sample(crop.float()[None, None], grid, mode="bilinear", padding_mode="border", align_corners=True)
    return values[0, 0]


def _changed(image: torch.Tensor, look: Appearance) -> torch.Tensor:
    """Return intensities after blur, gain, shift and noise."""
    if look.blur > 0:
        axes = [blurred(Dense(np.eye(n, dtype=np.float32), inside=True), look.blur) for n in image.shape]
        image = resample(image.contiguous(), axes, air=0.0)
    if (look.gain, look.shift) != (1.0, 0.0):
        image = image * look.gain + look.shift
    if look.noise > 0:
        noise = randomness.gaussian_noise(tuple(image.shape), look.noise_key, device=image.device)
        image = image + noise.mul_(look.noise)
    return image


def _shown(image: torch.Tensor, look: Appearance, windows: Sequence[Window | Curve]) -> torch.Tensor:
    channels = torch.empty((len(windows), *image.shape), device=image.device)
    for channel, window in zip(channels, windows, strict=True):
        if isinstance(window, Curve):
            channel.copy_(window(image))
            continue
        shift, scale = window.offset_and_scale
        values = image.clamp(window.low, window.high)
        if look.gamma != 1:
            span = window.high - window.low
            values = ((values - window.low) / span).pow_(look.gamma).mul_(span).add_(window.low)
        torch.sub(values, shift, out=channel).div_(scale)
    return channels

"""Render views from crops: geometry, then intensities in HU, windows last. Deterministic, on any device.

Flips, blur and what lies outside the scan are part of the resampling matrices (fmct.axes). Without noise or curves
the whole view is linear up to its windows: then each window, with gain and shift, is one line of the resampled slices,
and a clamp finishes it while it is in the cache.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fmct import randomness
from fmct.axes import Axis, blurred, linear_axis, truncated
from fmct.data.appearance import apply_curves
from fmct.data.views import ViewParameters
from fmct.resample import Line, exact_products, resample, resample_in_plane, write_lines
from fmct.threads import torch_threads
from fmct.windows import Window

_SHARPEN_BLUR = 1.0  # voxels: the width of the blur that unsharp masking subtracts


def render(
    crops: Sequence[torch.Tensor],
    parameters: Sequence[ViewParameters],
    *,
    windows: Sequence[Window],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return views (V, C, D, H, W) float32 of int16 crops (d, h, w), one window per channel, on the crops' device.

    windows: empty for views that carry percentiles (`values`), which become one channel in [−1, 1]. out: where to
    write, of that shape. All views have one size. A view depends on its own crop and parameters only.
    """
    channels = len(windows) or 1
    shape = (len(crops), channels, *parameters[0].size)
    views = empty_image(shape, crops[0].device) if out is None else out
    assert tuple(views.shape) == shape, f"out has shape {tuple(views.shape)}, the views need {shape}"
    assert all(p.size == parameters[0].size for p in parameters), "views of one call have one size"
    # Steps of some 50 µs cost a CPU more to share out between threads than they take: twice on two cores.
    threads = 1 if views.device.type == "cpu" else 0
    with exact_products(views.device), torch_threads(threads):
        for crop, view, target in zip(crops, parameters, views, strict=True):
            _render_one(crop, view, windows or [_percentile_window(view)], target)
    return views


def empty_image(shape: Sequence[int], device: torch.device | str) -> torch.Tensor:
    """Return an uninitialised float32 tensor; on a CPU numpy's, which asks for huge pages and so spares page faults."""
    if torch.device(device).type == "cpu":
        return torch.from_numpy(np.empty(tuple(shape), dtype=np.float32))
    return torch.empty(tuple(shape), dtype=torch.float32, device=device)


def view_axes(view: ViewParameters) -> tuple[Axis, Axis, Axis]:
    """Return the view's resampling matrices along z, y and x, blur and ringing included."""
    z, y, x = (
        truncated(blurred(_axis(view, axis), view.appearance.blur), view.appearance.ringing)
        if view.appearance.ringing < 1
        else blurred(_axis(view, axis), view.appearance.blur)
        for axis in range(3)
    )
    return z, y, x


def _axis(view: ViewParameters, axis: int) -> Axis:
    positions = view.first[axis] + view.step[axis] * np.arange(view.size[axis])
    return linear_axis(positions, view.shape[axis], low=view.low[axis], high=view.high[axis])


def _render_one(crop: torch.Tensor, view: ViewParameters, windows: Sequence[Window], out: torch.Tensor) -> None:
    if view.appearance.linear and view.order == (0, 1, 2):
        _render_linear(crop, view, windows, out)
        return
    image = _intensities(crop, view)
    if view.order != (0, 1, 2):
        image = image.permute(view.order)
    for window, target in zip(windows, out, strict=True):
        gain, bias, low, high = _window_line(window)
        torch.add(torch.tensor(bias, device=image.device), image, alpha=gain, out=target).clamp_(low, high)
        if view.appearance.gamma != 1 or view.appearance.histogram:
            share = target.sub_(low).mul_(1 / (high - low))
            target.copy_(apply_curves(share, view.appearance).mul_(high - low).add_(low))


def _render_linear(crop: torch.Tensor, view: ViewParameters, windows: Sequence[Window], out: torch.Tensor) -> None:
    """Write the windows of a view without noise or curves: each a line of the resampled slices, clamped."""
    z, y, x = view_axes(view)
    look = view.appearance
    air = 0.0 if z.inside and y.inside and x.inside else view.air / view.scale  # nothing to be relative to
    planes = resample_in_plane(crop, y, x, air=air).flatten(1)
    slope, bias = look.gain * view.scale, look.gain * view.scale * air + look.shift
    lines = [
        Line(slope * gain, bias * gain + offset, low, high) for gain, offset, low, high in map(_window_line, windows)
    ]
    write_lines(planes, z, lines, out=out.flatten(2))


def _intensities(crop: torch.Tensor, view: ViewParameters) -> torch.Tensor:
    """Return the view's intensities (D, H, W) in the scan's units, before `order` and windows."""
    look, air = view.appearance, view.air / view.scale
    z, y, x = view_axes(view)
    image = resample(crop, (z, y, x), air=air)
    if look.sharpen > 0:
        wider = [blurred(axis, _SHARPEN_BLUR) for axis in (z, y, x)]
        image.add_(image - resample(crop, wider, air=air), alpha=look.sharpen)
    image.mul_(view.scale * look.gain).add_(look.shift)
    if look.noise > 0:
        noise = randomness.gaussian_noise(tuple(image.shape), look.noise_key, device=image.device)
        image.add_(noise.mul_(look.noise))
    return image


def _window_line(window: Window) -> tuple[float, float, float, float]:
    """Return (gain, bias, low, high): a value v in HU shows as clamp(gain · v + bias, low, high)."""
    shift, scale = window.offset_and_scale
    ends = ((window.low - shift) / scale, (window.high - shift) / scale)
    return 1 / scale, -shift / scale, min(ends), max(ends)


def _percentile_window(view: ViewParameters) -> Window:
    """Return the window that maps the scan's own percentiles to [−1, 1]."""
    assert view.values is not None, "a view without windows carries percentiles"
    low, high = view.values
    high = max(high, low + 1e-3)
    return Window(low, high, shift=(low + high) / 2, scale=(high - low) / 2)

"""A slow renderer of views: every output voxel is one call of scipy's interpolator in world order, then the windows."""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from fmct.data.views import ViewParameters
from fmct.windows import Window


def reference_view(level: np.ndarray, view: ViewParameters, windows: list[Window]) -> np.ndarray:
    """Return (C, D, H, W) of a view, from a whole pyramid level; blur has to be away from the scan's border."""
    index = np.meshgrid(*[np.arange(n) for n in view.size], indexing="ij")
    place = [f + start + s * i for f, start, s, i in zip(view.first, view.start, view.step, index, strict=True)]
    image = map_coordinates(level.astype(np.float64), place, order=1, mode="nearest")
    for p, low, high, start in zip(place, view.low, view.high, view.start, strict=True):
        image[(p < low + start - 1e-6) | (p > high + start + 1e-6)] = view.air / view.scale
    image *= view.scale
    if view.appearance.blur > 0:
        radius = max(1, round(4 * view.appearance.blur))
        ones = gaussian_filter(np.ones(view.size), view.appearance.blur, mode="constant", radius=radius)
        image = (
            view.air + gaussian_filter(image - view.air, view.appearance.blur, mode="constant", radius=radius) / ones
        )
    image = image * view.appearance.gain + view.appearance.shift
    image = image.transpose(view.order)
    channels = []
    for window in windows:
        shift, scale = window.offset_and_scale
        channels.append((np.clip(image, window.low, window.high) - shift) / scale)
    return np.stack(channels)

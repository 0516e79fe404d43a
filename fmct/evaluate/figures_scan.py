"""Pictures of scans for the report: CT on three orthogonal planes, and the colours of its features over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from scipy import ndimage

from fmct.evaluate.feature_maps import ColourBasis, FeatureMap
from fmct.evaluate.figures import INK, ORANGE, WIDTH_IN, house_style, new_figure, png

PLANES = (("axial", 0), ("coronal", 1), ("sagittal", 2))
SOFT_TISSUE = (-160.0, 240.0)
CT_SHARE = 0.45  # of a coloured voxel's brightness that follows the CT, so that its edges can be seen
_BODY_HU = -500.0


@dataclass(frozen=True)
class ScanPicture:
    """One scan to draw, axes Superior, Posterior, Left: hu (D, H, W) at spacing_mm, and what lies over it.

    maps: {name: (FeatureMap, its ColourBasis)}, a column each. mask: (D, H, W) lesion share, outlined on the CT. at:
    the voxel (z, y, x) that the planes go through; by default the mask's centre, else the body's.
    """

    title: str
    hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    maps: Mapping[str, tuple[FeatureMap, ColourBasis]]
    mask: np.ndarray | None = None
    at: tuple[int, int, int] | None = None


def pca_figure(pictures: Sequence[ScanPicture]) -> bytes:
    """Return a sheet: three planes of each scan side by side; first row CT, then one row for each map's colours."""
    names = list(dict.fromkeys(name for picture in pictures for name in picture.maps))
    sizes = [size for picture in pictures for size in _plane_sizes(picture)]
    height, widths = max(size[0] for size in sizes), [size[1] for size in sizes]
    scale = (WIDTH_IN - 0.3 - 0.06 * len(widths)) / sum(widths)
    with house_style():
        figure = new_figure(WIDTH_IN, height * scale * (1 + len(names)) + 0.5)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)  # type: ignore[union-attr]
        grid = figure.subplots(1 + len(names), len(widths), width_ratios=widths, squeeze=False)
        for number, picture in enumerate(pictures):
            _draw_scan(grid[:, number * len(PLANES) : (number + 1) * len(PLANES)], picture, names)
        for axes, name in zip(grid[:, 0], ["CT", *names], strict=True):
            axes.set_ylabel(name, fontsize=8, color=INK, labelpad=5)
        return png(figure)


def _draw_scan(grid: np.ndarray, picture: ScanPicture, names: Sequence[str]) -> None:
    at = picture.at or _centre(picture)
    colours = {name: _coloured(picture, *found) for name, found in picture.maps.items()}
    for column, (plane, axis) in enumerate(PLANES):
        axes = grid[0, column]
        _show(axes, _slice(picture.hu, axis, at[axis]), picture, axis, "gray", *SOFT_TISSUE)
        axes.set_title(f"{picture.title}\n{plane}" if column == 0 else plane, fontsize=7.5, loc="left", pad=3)
        if picture.mask is not None:
            share = _slice(picture.mask, axis, at[axis])
            if share.max() > 0.5:
                axes.contour(share, levels=[0.5], colors=ORANGE, linewidths=1.1)
        for row, name in enumerate(names, start=1):
            if name in colours:
                _show(grid[row, column], _slice(colours[name], axis, at[axis]), picture, axis)
            else:
                grid[row, column].set_axis_off()


def _show(
    axes: Axes,
    image: np.ndarray,
    picture: ScanPicture,
    axis: int,
    cmap: str | None = None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    rows, columns = (s for number, s in enumerate(picture.spacing_mm) if number != axis)
    # Canonical axes: z grows upwards; y grows backwards and x to the patient's left, as radiologists look at a scan.
    origin = "upper" if axis == 0 else "lower"
    axes.imshow(image, cmap, origin=origin, aspect=rows / columns, interpolation="bilinear", vmin=low, vmax=high)
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _coloured(picture: ScanPicture, found: FeatureMap, basis: ColourBasis) -> np.ndarray:
    """Return (D, H, W, 3): the map's colours on the scan's voxels, shaded by the CT, white outside the body."""
    colours = basis.colours(found)
    axes = [
        np.clip((np.arange(n) - o) / s, 0, c - 1)
        for n, o, s, c in zip(picture.hu.shape, found.origin, found.step, colours.shape[:3], strict=True)
    ]
    places = np.meshgrid(*axes, indexing="ij")
    channels = [ndimage.map_coordinates(colours[..., k], places, order=1, mode="nearest") for k in range(3)]
    low, high = SOFT_TISSUE
    shade = (1 - CT_SHARE) + CT_SHARE * np.clip((picture.hu - low) / (high - low), 0, 1)
    body = ndimage.binary_opening(picture.hu > _BODY_HU)
    return np.where(body[..., None], np.stack(channels, axis=-1) * shade[..., None], 1.0)


def _plane_sizes(picture: ScanPicture) -> list[tuple[float, float]]:
    """Return (height, width) in mm of each plane."""
    extent = [n * s for n, s in zip(picture.hu.shape, picture.spacing_mm, strict=True)]
    return [(extent[1], extent[2]), (extent[0], extent[2]), (extent[0], extent[1])]


def _centre(picture: ScanPicture) -> tuple[int, int, int]:
    marked = picture.mask > 0.5 if picture.mask is not None and (picture.mask > 0.5).any() else picture.hu > _BODY_HU
    if not marked.any():
        marked = np.ones_like(marked)
    z, y, x = np.rint(np.argwhere(marked).mean(axis=0)).astype(int).tolist()
    return (z, y, x)


def _slice(volume: np.ndarray, axis: int, at: int) -> np.ndarray:
    return np.take(volume, at, axis=axis)

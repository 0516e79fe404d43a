"""Drawing the preview sheet with matplotlib: scans with boxes, views by window and plane, masks, histograms."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmct.data.preview import DrawnSample, collect, shown_windows
from fmct.errors import ConfigError
from fmct.windows import Window

_CELL = 1.25  # inches
_MOST_GLOBAL, _MOST_LOCAL = 2, 4  # views drawn; boxes are drawn for all
_GLOBAL_COLOURS, _LOCAL_COLOUR, _MASK_COLOUR = ("#ffb000", "#00b4d8", "#8ac926", "#ff70a6"), "#f94144", (1.0, 0.35, 0.2)
_PLANES = ("axial", "coronal", "sagittal")
_OVERVIEW = (-160.0, 240.0)  # HU


@dataclass(frozen=True)
class PreviewConfig:
    """The sheet. output: the PNG to write. draws: how many, one row each. start: the first draw."""

    output: str = "preview.png"
    draws: int = 3
    start: int = 0


def write_sheet(config: Any, settings: PreviewConfig) -> str:
    """Write the sheet of a recipe's configuration and return a line that says what it shows.

    config: has seed, store or data.stores, views, masking and encoder.patch_size. Raises ConfigError or DataError.
    """
    if settings.draws < 1 or settings.start < 0:
        raise ConfigError(f"draws must be ≥ 1 and start ≥ 0, got {settings.draws} and {settings.start}.")
    for part in ("data", "views", "masking", "encoder"):
        if not hasattr(config, part):
            raise ConfigError(f"fmct preview: the recipe's configuration has no {part}; it does not train on views.")
    path = Path(settings.output)
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"output={settings.output}: the folder does not exist.")
    samples = collect(config, range(settings.start, settings.start + settings.draws))
    draw_sheet(path, samples, windows=shown_windows(config.views))
    body = np.mean([view.body_fraction for sample in samples for view in sample.parameters])
    shown = f"{settings.draws} draws from {settings.start}, seed {config.seed}"
    return f"{path}: {shown}; body {body:.0%} of a view on average."


def draw_sheet(path: Path, samples: Sequence[DrawnSample], *, windows: Sequence[Window]) -> None:
    """Write a PNG with one band per sample: the scan and the views' boxes, each view by window, masks, histogram."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [view.kind for view in samples[0].parameters]
    shown_global, shown_local = min(kinds.count("global"), _MOST_GLOBAL), min(kinds.count("local"), _MOST_LOCAL)
    rows = max(3, len(windows))
    widths = [1.45] + [1.0, 1.0, 1.0, 1.0, 0.12] * shown_global + [1.0] * shown_local + [0.4, 2.0]
    figure = Figure(figsize=(_CELL * sum(widths), (_CELL * rows + 0.75) * len(samples)), facecolor="white")
    FigureCanvasAgg(figure)
    for band, sample in zip(figure.subfigures(len(samples), 1, squeeze=False)[:, 0], samples, strict=True):
        grid = band.add_gridspec(
            rows,
            len(widths),
            width_ratios=widths,
            wspace=0.06,
            hspace=0.06,
            left=0.012,
            right=0.995,
            top=0.83,
            bottom=0.05,
        )
        band.suptitle(_title(sample), x=0.012, y=0.985, ha="left", fontsize=10, fontweight="bold")
        for row in range(3):
            _draw_overview(band.add_subplot(grid[row, 0]), sample, row)
        column = 1
        for number in range(shown_global):
            _draw_global(band, grid, column, sample, number, windows)
            column += 5
        for position in range(shown_local):
            _draw_local(band, grid, column + position, sample, kinds.count("global") + position, windows)
        _draw_histogram(band.add_subplot(grid[:, -1]), sample, windows)
    figure.savefig(path, dpi=110)


def _title(sample: DrawnSample) -> str:
    entry = sample.entry
    spacing = " × ".join(f"{s:.2f}" for s in entry.spacing_mm)
    extent = " × ".join(f"{n * s:.0f}" for n, s in zip(entry.shape, entry.spacing_mm, strict=True))
    shape = " × ".join(str(n) for n in entry.shape)
    parts = (
        f"draw {sample.draw}",
        f"{entry.modality} {entry.id[:8]}",
        f"{shape} voxels of {spacing} mm",
        f"{extent} mm",
    )
    return "   ·   ".join(parts) + " (z y x)"


def _draw_overview(axes: Any, sample: DrawnSample, plane: int) -> None:
    """Draw one plane of the scan through the first view's middle, and the outline of every view."""
    from matplotlib.patches import Rectangle

    factor = np.asarray(sample.overview_factor, dtype=np.float64)
    spacing = np.asarray(sample.entry.spacing_mm)
    first = sample.parameters[0]
    middle = (np.asarray(first.corner) + np.asarray(first.side) / 2 + 0.5) / factor
    index = int(np.clip(middle[plane], 0, sample.overview.shape[plane] - 1))
    low, high = _OVERVIEW if sample.entry.modality == "CT" else np.percentile(sample.overview, (1, 99))
    _show(axes, sample.overview.take(index, axis=plane), spacing * factor, plane, low=low, high=high)
    vertical, horizontal = (axis for axis in range(3) if axis != plane)
    seen = 0
    for view in sample.parameters:
        colour = _GLOBAL_COLOURS[seen % len(_GLOBAL_COLOURS)] if view.kind == "global" else _LOCAL_COLOUR
        seen += view.kind == "global"
        corner, side = (np.asarray(view.corner) + 0.5) * spacing, np.asarray(view.side) * spacing
        place = (float(corner[horizontal]), float(corner[vertical]))
        box = Rectangle(place, float(side[horizontal]), float(side[vertical]), fill=False, edgecolor=colour)
        box.set_linewidth(1.3 if view.kind == "global" else 0.8)
        box.set_linestyle("solid" if view.kind == "global" else (0, (3, 2)))
        axes.add_patch(box)
    _bar(axes, 50)
    axes.set_ylabel(_PLANES[plane], fontsize=7, labelpad=1)


def _draw_global(
    band: Any, grid: Any, column: int, sample: DrawnSample, number: int, windows: Sequence[Window]
) -> None:
    """Draw a global view: rows are windows, columns planes; then its mask over the first window, rows are planes."""
    view, image = sample.parameters[number], sample.views[number]
    colour = _GLOBAL_COLOURS[number % len(_GLOBAL_COLOURS)]
    for row, window in enumerate(windows):
        for plane in range(3):
            axes = band.add_subplot(grid[row, column + plane])
            _show_view(axes, image[row], view.spacing_mm, plane, window, colour)
            if row == 0 and plane == 0:
                axes.set_title(_view_title(view), fontsize=7, loc="left", pad=3)
            if plane == 0:
                place = {"transform": axes.transAxes, "path_effects": _outlined(1.2)}
                axes.text(0.03, 0.97, _window_name(window), fontsize=6, va="top", color="white", **place)
    mask = sample.masks[number]
    for plane in range(3):
        axes = band.add_subplot(grid[plane, column + 3])
        _show_view(axes, image[0], view.spacing_mm, plane, windows[0], colour)
        cut = mask.take(mask.shape[plane] // 2, axis=plane)
        tint = np.zeros((*cut.shape, 4))
        tint[cut] = (*_MASK_COLOUR, 0.55)
        axes.imshow(tint, **_placement(cut.shape, view.spacing_mm, plane), interpolation="nearest")
        if plane == 0:
            axes.set_title(f"mask {mask.mean():.0%}" if mask.any() else "no mask", fontsize=7, loc="left", pad=3)


def _draw_local(band: Any, grid: Any, column: int, sample: DrawnSample, number: int, windows: Sequence[Window]) -> None:
    """Draw the middle axial plane of a local view in every window."""
    view, image = sample.parameters[number], sample.views[number]
    for row, window in enumerate(windows):
        axes = band.add_subplot(grid[row, column])
        _show_view(axes, image[row], view.spacing_mm, 0, window, _LOCAL_COLOUR)
        if row == 0:
            axes.set_title(_view_title(view), fontsize=5.5, loc="left", pad=3)


def _draw_histogram(axes: Any, sample: DrawnSample, windows: Sequence[Window]) -> None:
    """Draw the intensities that the views were cut from, and the windows as bars below."""
    low, high = np.percentile(sample.intensities, (0.1, 99.9))
    if sample.entry.modality == "CT":
        low, high = -1100.0, max(1000.0, float(high))
    counts, edges = np.histogram(sample.intensities, bins=120, range=(low, high))
    axes.stairs(counts / max(counts.sum(), 1), edges, fill=True, color="#5b7c99")
    axes.set_yscale("log")
    axes.set_ylim(1e-5, 3)
    axes.set_xlim(low, high)
    unit = "HU" if sample.entry.modality == "CT" else "intensity"
    axes.set_title(f"{unit} of the crops (share per bin)", fontsize=7, loc="left", pad=3)
    for number, window in enumerate(windows if sample.parameters[0].values is None else []):
        height = 1.8 / 2.2**number
        ends = np.clip([window.low, window.high], low, high)
        axes.plot(ends, [height, height], linewidth=3, solid_capstyle="butt", color=f"C{number + 1}")
        axes.text(ends[1], height, f" {_window_name(window)}", fontsize=6, va="center", clip_on=True)
    axes.tick_params(labelsize=6, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _show_view(axes: Any, image: np.ndarray, spacing: Sequence[float], plane: int, window: Window, colour: str) -> None:
    shift, scale = window.offset_and_scale
    low, high = sorted(((window.low - shift) / scale, (window.high - shift) / scale))
    _show(axes, image.take(image.shape[plane] // 2, axis=plane), np.asarray(spacing), plane, low=low, high=high)
    _bar(axes, 20)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1.2, visible=True)


def _show(axes: Any, image: np.ndarray, spacing: np.ndarray, plane: int, *, low: float, high: float) -> None:
    """Draw a plane to scale, superior up (posterior down in axial planes)."""
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, **_placement(image.shape, spacing, plane))
    axes.set(xticks=[], yticks=[], facecolor="black")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _placement(shape: Sequence[int], spacing: Any, plane: int) -> dict[str, Any]:
    """Return imshow's arguments that place a plane (rows, columns) in millimetres."""
    vertical, horizontal = (axis for axis in range(3) if axis != plane)
    height, width = shape[0] * spacing[vertical], shape[1] * spacing[horizontal]
    if plane == 0:
        return {"extent": (0, width, height, 0), "origin": "upper", "aspect": "equal"}
    return {"extent": (0, width, 0, height), "origin": "lower", "aspect": "equal"}


def _bar(axes: Any, length_mm: float) -> None:
    """Draw a bar of `length_mm` in the lower right corner of an image in millimetres."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    x = right - 0.06 * (right - left)
    y = bottom + 0.06 * (top - bottom)
    stroke = {"linewidth": 1.6, "solid_capstyle": "butt", "path_effects": _outlined(2.6)}
    axes.plot([x - length_mm, x], [y, y], color="white", **stroke)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _outlined(width: float) -> list[Any]:
    """Return the effect that keeps a white mark legible on white tissue: a dark edge, `width` points across in all."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="black")]


def _view_title(view: Any) -> str:
    side = "×".join(f"{n * s:.0f}" for n, s in zip(view.size, view.spacing_mm, strict=True))
    spacing = "×".join(f"{s:.1f}" for s in view.spacing_mm)
    return f"{view.kind} {view.view}: {side} mm\nat {spacing} mm\nbody {view.body_fraction:.0%}"


def _window_name(window: Window) -> str:
    return window.name or f"{window.low:g} … {window.high:g}"

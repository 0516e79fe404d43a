"""Figures of the report, as PNG bytes: curves of a run, probe results. Drawn without pyplot, so no global state.

Colours are Okabe and Ito's, which people with any kind of colour vision tell apart.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmct.probes.comparison import ENCODER, RANDOM, ProbeReport, Row, signed

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, GREY, FAINT = "#1b1f24", "#6b7480", "#d9dde2"
WIDTH_IN, DPI = 7.2, 170
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.labelcolor": GREY,
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
}
TERM_NAMES = {
    "dino": "DINO, CLS token",
    "ibot": "iBOT, masked patches",
    "koleo": "KoLeo, spread of CLS",
    "gram": "Gram anchor",
    "pixel": "Reconstruction of masked voxels",
}
HEALTH_PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Entropy of one target", "share of ln K", (("teacher_entropy", "CLS"), ("teacher_entropy_patch", "patches"))),
    (
        "Entropy of the mean target",
        "share of ln K",
        (("marginal_entropy", "CLS"), ("marginal_entropy_patch", "patches")),
    ),
    ("Prototypes in use", "share", (("prototype_usage", "CLS"), ("prototype_usage_patch", "patches"))),
    ("Rank of the features", "RankMe, dimensions", (("rank_me", ""),)),
    ("Spread of features", "1 = isotropic", (("feature_std", ""),)),
    ("Teacher to student", "relative distance", (("ema_distance", ""),)),
    ("Gradient norm", "before clipping", (("grad_norm", ""),)),
    ("Speed", "volumes per second", (("volumes_per_second", ""),)),
)
Rows = Sequence[Mapping[str, Any]]


@contextmanager
def house_style() -> Iterator[None]:
    """Draw figures in the report's style, whatever the user's matplotlib settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams
        settings.update(STYLE)
        yield


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty white figure."""
    return Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white", layout="constrained")


def loss_figure(metrics: Rows) -> bytes:
    """Return the curves of the loss and each of its terms, from the rows of metrics.jsonl."""
    terms = [key for key in dict.fromkeys(key for row in metrics for key in row) if key.startswith("loss/")]
    panels = [("Loss, weighted sum", "", (("loss", ""),))]
    panels += [(TERM_NAMES.get(t.removeprefix("loss/"), t.removeprefix("loss/")), "", ((t, ""),)) for t in terms]
    return _small_multiples(metrics, panels)


def health_figure(metrics: Rows, timing: Rows = ()) -> bytes:
    """Return the curves that show collapse, gradient and speed, from the rows of metrics.jsonl and timing.jsonl."""
    by_step = {row.get("step"): row.get("volumes_per_second") for row in timing}
    rows = [{**row, "volumes_per_second": by_step.get(row.get("step"))} for row in metrics]
    present = {key for row in rows for key, value in row.items() if value is not None}
    panels = [panel for panel in HEALTH_PANELS if any(key in present for key, _ in panel[2])]
    return _small_multiples(rows, panels)


def probe_figure(report: ProbeReport) -> bytes:
    """Return a probe's scores with intervals, and where they are per patient, each patient's gain over random."""
    with house_style():
        gains = _patient_gains(report)
        height = 0.7 + 0.34 * len(report.rows)
        figure = new_figure(WIDTH_IN, max(height, 2.1 if len(gains) else height))
        axes = figure.subplots(1, 2, width_ratios=[1.35, 1]) if len(gains) else [figure.subplots()]
        _draw_scores(axes[0], report)
        if len(gains):
            _draw_gains(axes[1], report, gains)
        return png(figure)


def curve(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) of the finite values of one key."""
    pairs = [
        (row["step"], row[key])
        for row in rows
        if isinstance(row.get(key), (int, float)) and math.isfinite(row[key]) and "step" in row
    ]
    steps, values = (np.asarray(part, dtype=np.float64) for part in zip(*pairs, strict=True)) if pairs else ([], [])
    return np.asarray(steps), np.asarray(values)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a fortieth of the run, at least five values, cut at the ends."""
    side = max(2, len(values) // 80)
    if len(values) < 12:
        return values
    table = np.concatenate([[0.0], values.cumsum()])
    low = np.maximum(np.arange(len(values)) - side, 0)
    high = np.minimum(np.arange(len(values)) + side + 1, len(values))
    return (table[high] - table[low]) / (high - low)


def _small_multiples(rows: Rows, panels: Sequence[tuple[str, str, tuple[tuple[str, str], ...]]]) -> bytes:
    columns = 4 if len(panels) > 6 else 3 if len(panels) > 1 else 1
    lines = -(-len(panels) // columns)
    with house_style():
        figure = new_figure(WIDTH_IN, 1.75 * lines)
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
        for axes, (title, unit, keys) in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, rows, title, unit, keys)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for column in range(columns):
            used = [axes for number, axes in enumerate(grid[:, column]) if number * columns + column < len(panels)]
            used[-1].set_xlabel("step")
            used[-1].tick_params(labelbottom=True)
        return png(figure)


def _draw_panel(axes: Axes, rows: Rows, title: str, unit: str, keys: tuple[tuple[str, str], ...]) -> None:
    axes.set_title(title, fontsize=8, pad=14 if unit else 5)
    if unit:
        axes.annotate(
            unit, (0, 1), xytext=(0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=7, color=GREY
        )
    several = sum(bool(len(curve(rows, key)[0])) for key, _ in keys) > 1
    for (key, label), colour in zip(keys, (BLUE, VERMILION), strict=False):
        steps, values = curve(rows, key)
        if not len(steps):
            continue
        means = smoothed(values)
        if len(values) >= 12:
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.7)
        axes.plot(steps, means, color=colour, label=label if several else None)
    if several:
        axes.legend(loc="best", handlelength=1.2, borderaxespad=0.1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    low, high = axes.get_ylim()
    if unit.startswith("share"):
        axes.set_ylim(0, 1.04)
    elif high - low < 1e-3 * max(abs(high), abs(low)):  # a constant is a level line, not noise blown up
        axes.set_ylim(low - 0.05 * abs(low) - 1e-3, high + 0.05 * abs(high) + 1e-3)
    elif 0 <= min(low, high) < 0.25 * high:
        axes.set_ylim(bottom=0)


def _draw_scores(axes: Axes, report: ProbeReport) -> None:
    rows = list(report.rows)[::-1]
    for place, row in enumerate(rows):
        if row.score.estimate is None:
            axes.text(0.02, place, "n/a", color=GREY, va="center", transform=axes.get_yaxis_transform())
            continue
        colour = BLUE if _is_encoder(row) else GREY
        if row.score.low is not None and row.score.high is not None:
            axes.plot([row.score.low, row.score.high], [place, place], color=colour, linewidth=2.2)
        axes.plot(row.score.estimate, place, "o", color=colour, markersize=6)
        axes.annotate(
            f"{row.score.estimate:.2f}".replace("0.", ".", 1), (row.score.estimate, place), xytext=(0, 6),
            textcoords="offset points", ha="center", fontsize=7.5, color=colour,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_wrapped(row.name) for row in rows], color=INK)
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{report.metric}; bar: 95 %")
    if "AUROC" in report.metric:
        axes.axvline(0.5, color=FAINT, linewidth=0.8, zorder=0)
        axes.annotate("chance", (0.5, 1), xycoords=("data", "axes fraction"), fontsize=7, color=GREY, ha="center")


def _draw_gains(axes: Axes, report: ProbeReport, gains: np.ndarray) -> None:
    row = next(row for row in report.rows if row.name.startswith(RANDOM))
    order = np.sort(gains)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    places = np.arange(len(order))
    axes.hlines(places, 0, order, color=FAINT, linewidth=1.2)
    axes.scatter(order, places, s=14, color=[BLUE if value > 0 else VERMILION for value in order], zorder=3)
    if row.gain is not None and row.gain.low is not None and row.gain.high is not None:
        axes.axvspan(row.gain.low, row.gain.high, color=BLUE, alpha=0.12, linewidth=0)
        axes.axvline(row.gain.estimate or 0.0, color=BLUE, linewidth=1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(f"Gain over random, per patient\n{signed(row.gain)}" if row.gain else "", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.2f}".replace("-", "−") if value else "0")
    axes.set_xlabel("a dot is a patient; band: 95 % for the mean")


def _patient_gains(report: ProbeReport) -> np.ndarray:
    own = report.values.get(ENCODER, {})
    random = next((values for name, values in report.values.items() if name.startswith(RANDOM)), {})
    return np.array([own[patient] - random[patient] for patient in own if patient in random])


def _is_encoder(row: Row) -> bool:
    return row.name.split(": ")[-1] == ENCODER


def _wrapped(name: str) -> str:
    return name.replace(" (", "\n(", 1) if len(name) > 24 else name

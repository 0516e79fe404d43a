"""The picture of learning curves: a score against training patients, an interval over test patients at each size."""

import io
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fmct.metrics.intervals import Interval

Points = Mapping[int, Interval]  # {training patients: score, an interval over test patients}
# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
_LOOKS = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))
_INK, _GREY, _FAINT = "#1b1f24", "#4d555f", "#e3e6ea"
_SIZE_IN, _DPI, _LINE = (5.6, 3.7), 150, 86  # _LINE: letters of the title
_APART = 0.09  # between arms at one size, in doublings of patients
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": _INK,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "text.color": _INK,
}


def curve_figure(curves: Mapping[str, Points], title: str, *, score: str) -> bytes:
    """Return a PNG (840 × 555 pixels) of the arms that have several sizes, side by side at each size, x in doublings.

    title: says what the data is. score: name of the y axis, its unit included. A point without an interval has no bar.
    """
    several = {arm: points for arm, points in curves.items() if len(points) > 1}
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's matplotlib settings are
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for number, points in enumerate(several.values()):
            _draw(axes, points, number, _APART * (number - (len(several) - 1) / 2))
        sizes = sorted({size for points in several.values() for size in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.margins(x=0.06, y=0.08)
        axes.grid(axis="y", color=_FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlabel("training patients (log₂ scale)")
        axes.set_ylabel(score)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.set_title(_bars(list(several.values())), loc="left", fontsize=8.5, color=_GREY, pad=8)
        figure.suptitle("\n".join(wrap(title, _LINE)), x=0.01, ha="left", fontsize=9)
        lines = [Line2D([], [], **_look(number)) for number in range(len(several))]
        axes.legend(lines, list(several), frameon=False, loc="best", handlelength=2.8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, pil_kwargs={"optimize": True})
    return buffer.getvalue()


def _draw(axes: Axes, points: Points, number: int, shift: float) -> None:
    found = [point for point in points.items() if point[1].estimate is not None]
    sizes = np.array([size for size, _ in found]) * 2.0**shift
    low, means, high = (
        np.array([getattr(interval, name) for _, interval in found], dtype=float)  # None becomes NaN: no bar
        for name in ("low", "estimate", "high")
    )
    axes.errorbar(
        sizes, means, yerr=[means - low, high - means], elinewidth=1.1, capsize=3, capthick=1.1, **_look(number)
    )  # fmt: skip


def _look(number: int) -> dict[str, Any]:
    """Return how the line of an arm is drawn, in the axes and in the legend."""
    colour, marker, line = _LOOKS[number % len(_LOOKS)]
    return {"color": colour, "marker": marker, "linestyle": line, "markersize": 5, "linewidth": 1.4}


def _bars(curves: Sequence[Points]) -> str:
    """Return what points and bars are, with the number of test patients behind them."""
    numbers = sorted({interval.n for points in curves for interval in points.values()})
    counted = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"Means and 95 % intervals over {counted} test patients"

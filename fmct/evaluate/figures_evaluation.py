"""Figures of an evaluation: ROC, precision and recall, reliability for each finding; FROC; a difference by patient."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import precision_recall_curve, roc_curve

from fmct.evaluate.classification import Finding
from fmct.evaluate.figures import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH_IN,
    house_style,
    new_figure,
    png,
)
from fmct.metrics.froc import RATES, Froc

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
_LEAST_WEIGHTED_RATE = 1 / 16


def curves_figure(findings: Mapping[str, Mapping[str, Finding]], targets: Sequence[str]) -> bytes:
    """Return one row per finding: ROC, precision against recall, and reliability; one line per model."""
    with house_style():
        figure = new_figure(WIDTH_IN, 2.62 * len(targets) + (0.25 if len(findings) > 1 else 0.0))
        grid = figure.subplots(len(targets), 3, squeeze=False)
        for row, target in zip(grid, targets, strict=True):
            for axes in row:
                axes.set_aspect("equal", anchor="N")
                axes.set_xlim(-0.02, 1.02)
                axes.set_ylim(-0.02, 1.02)
                axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
                axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
            _frame(row, target, [found[target] for found in findings.values() if target in found])
            for number, found in enumerate(findings.values()):
                if target in found:
                    _draw_finding(row, found[target], number)
        if len(findings) > 1:
            handles = [_line(grid[0, 0], number, name) for number, name in enumerate(findings)]
            figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)), handlelength=2.4)
        return png(figure)


def froc_figure(curves: Mapping[str, Froc]) -> bytes:
    """Return the FROC of each model, false positives per subject on a logarithmic axis."""
    with house_style():
        figure = new_figure(WIDTH_IN, 3.0)
        axes = figure.subplots()
        most = max([8.0, *(float(curve.rate.max()) for curve in curves.values())])
        for number, (name, curve) in enumerate(curves.items()):
            rate = np.r_[_LEAST_WEIGHTED_RATE, np.maximum(curve.rate, _LEAST_WEIGHTED_RATE), most]
            found = np.r_[0.0, curve.sensitivity, curve.sensitivity[-1]]
            axes.step(
                rate,
                found,
                where="post",
                color=_colour(number),
                linestyle=_dash(number),
                label=name if len(curves) > 1 else None,
            )
            for limit, interval in curve.sensitivity_at.items():
                if interval.low is not None and interval.high is not None:
                    place = limit * 1.05 ** (number - (len(curves) - 1) / 2)
                    axes.plot(
                        [place, place], [interval.low, interval.high], color=_colour(number), linewidth=0.9, alpha=0.6
                    )
                if interval.estimate is not None:
                    place = limit * 1.05 ** (number - (len(curves) - 1) / 2)
                    axes.plot(place, interval.estimate, "o", color=_colour(number), markersize=3.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        axes.minorticks_off()
        axes.set_xlim(_LEAST_WEIGHTED_RATE, most * 1.1)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("false positives per subject; bar: 95 % over patients")
        axes.set_ylabel("lesions found")
        if len(curves) > 1:
            axes.legend(loc="lower right", handlelength=2.4)
        return png(figure)


def _frame(row: Sequence[Axes], target: str, findings: Sequence[Finding]) -> None:
    """Draw what the curves are read against: chance, the share of positives, the diagonal."""
    roc, precision, calibration = row
    roc.set_title(target, fontweight="bold")
    precision.set_title("precision, recall", color=GREY)
    calibration.set_title("reliability", color=GREY)
    roc.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, zorder=0)
    calibration.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, zorder=0)
    shares = [float(f.scores.labels.mean()) for f in findings if len(f.scores.labels)]
    if shares:
        precision.axhline(shares[0], color=FAINT, linewidth=0.9, zorder=0)
    roc.set_xlabel("1 − specificity")
    roc.set_ylabel("sensitivity")
    precision.set_xlabel("recall (sensitivity)")
    precision.set_ylabel("precision (PPV)")
    calibration.set_xlabel("predicted probability")
    calibration.set_ylabel("share positive")


def _draw_finding(row: Sequence[Axes], finding: Finding, number: int) -> None:
    roc, precision, calibration = row
    kept = finding.scores.only(~finding.scores.failed)
    colour, dash = _colour(number), _dash(number)
    if len(set(kept.labels.tolist())) == 2:
        alarms, hits, _ = roc_curve(kept.labels, kept.probabilities, drop_intermediate=True)
        roc.plot(alarms, hits, color=colour, linestyle=dash)
        precise, recalled, _ = precision_recall_curve(kept.labels, kept.probabilities)
        precision.step(recalled, precise, where="post", color=colour, linestyle=dash)
        decided = finding.metrics["sensitivity"].estimate, finding.metrics["specificity"].estimate
        if decided[0] is not None and decided[1] is not None:
            roc.plot(1 - decided[1], decided[0], "o", color=colour, markersize=5, markerfacecolor="white", zorder=4)
    places = [b.probability for b in finding.bins]
    calibration.plot(
        places, [b.observed.estimate or 0.0 for b in finding.bins], color=colour, linewidth=0.9, linestyle=dash
    )
    for b in finding.bins:
        calibration.plot(
            [b.probability] * 2, [b.observed.low or 0.0, b.observed.high or 0.0], color=colour, linewidth=0.7, alpha=0.5
        )
        calibration.plot(b.probability, b.observed.estimate or 0.0, "o", color=colour, markersize=2.8)


def _line(axes: Axes, number: int, name: str) -> object:
    return axes.plot([], [], color=_colour(number), linestyle=_dash(number), label=name)[0]


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _dash(number: int) -> str | tuple[int, tuple[float, ...]]:
    return DASHES[(number // len(COLOURS) + number) % len(DASHES)]

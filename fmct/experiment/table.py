"""What a grid found: means over patients with intervals, contrasts that were listed before, and a learning curve."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import write_bytes, write_json, write_text
from fmct.experiment.curve import curve_figure
from fmct.metrics.contrasts import Contrast, ContrastResult, average_seeds, compare_arms
from fmct.metrics.intervals import Interval, t_interval

FORMAT = ("fmct-experiment", "1.0")
Scores = Mapping[str, Sequence[Mapping[str, float]]]  # {row: one {patient: value} a seed}


def cells_by_row(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return {row: its cells}: an arm, with its size where that is not everyone (0), however far the grid has come."""
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        rows[f"{cell['arm']}, n = {cell['size']}" if cell["size"] else cell["arm"]].append(cell)
    return dict(rows)


def scores_by_row(cells: Sequence[Mapping[str, Any]], score: str) -> dict[str, list[dict[str, float]]]:
    """Return {row: [{patient: value} of a seed, its folds joined]} of the finished cells.

    A seed whose folds are not all done yet waits until it has the patients of the others.
    """
    found = {}
    for row, own in cells_by_row(cells).items():
        seeds: dict[int, dict[str, float]] = defaultdict(dict)
        for cell in own:
            seeds[cell["seed"]] |= cell["scores"].get(score, {})
        most = max(len(values) for values in seeds.values())
        found[row] = [values for _, values in sorted(seeds.items()) if values and len(values) == most]
    return found


def write_table(
    folder: Path, cells: Sequence[Mapping[str, Any]], controls: Mapping[str, Mapping[str, float]],
    contrasts: Sequence[Contrast], *, left: int, title: str,
) -> str:  # fmt: skip
    """Write FOLDER/table.md and results.json, and curve.png where an arm has several sizes; return the table."""
    scores = scores_by_row(cells, "windows")
    scores |= {f"{row}, paired scan given": s for row, s in scores_by_row(cells, "paired").items() if s}
    whole = scores_by_row(cells, "whole")
    intervals = {row: _mean(found) for row, found in scores.items() if found}
    intervals |= {name: _mean([values]) for name, values in controls.items()}
    known = [c for c in contrasts if c.first in scores and c.second in scores]
    results = compare_arms({**scores, **{n: [v] for n, v in controls.items()}}, known) if known else []
    lines = [f"{title}. {len(cells)} cells done, {left} left.", "", *_rows(intervals, whole, cells), ""]
    lines += [*contrast_lines(results), *(f"Not yet: {c}." for c in contrasts if c not in known)]
    text = "\n".join(lines).rstrip() + "\n"
    rows = {row: {"dice": interval.to_dict()} for row, interval in intervals.items()}
    write_json(
        folder / "results.json", *FORMAT,
        {"title": title, "rows": rows, "contrasts": [result.to_dict() for result in results], "left": left},
    )  # fmt: skip
    write_text(folder / "table.md", text)
    curves = learning_curves(cells)
    if any(len(points) > 1 for points in curves.values()):
        write_bytes(folder / "curve.png", curve_figure(curves, title, score="Dice on windows, 0 to 1"))
    return text


def learning_curves(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Interval]]:
    """Return {arm: {training patients: mean Dice over test patients}}."""
    curves: dict[str, dict[int, Interval]] = defaultdict(dict)
    scores = scores_by_row(cells, "windows")
    for row, own in sorted(cells_by_row(cells).items(), key=lambda item: item[1][0]["training_patients"]):
        curves[own[0]["arm"]][own[0]["training_patients"]] = _mean(scores[row])
    return dict(curves)


def _mean(seeds: Sequence[Mapping[str, float]]) -> Interval:
    """Return the mean over patients with a t interval, seeds averaged within a patient first."""
    return t_interval(list(average_seeds(list(seeds)).values()))


def _rows(intervals: Mapping[str, Interval], whole: Scores, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| arm | Dice on windows | Dice on whole crops | seeds | GFLOP a window | seconds a cell |",
        "|---|---|---|---|---|---|",
    ]
    by_row = cells_by_row(cells)
    for row, interval in intervals.items():
        own = by_row.get(row, [])
        crops = str(_mean(whole[row])) if whole.get(row) else "–"
        seeds = str(len(whole[row])) if whole.get(row) else "–"
        flops = f"{np.mean([cell['gflop_per_window'] for cell in own]):.1f}" if own else "–"
        seconds = f"{np.mean([cell['seconds'] for cell in own]):.0f}" if own else "–"
        lines.append(f"| {row} | {interval} | {crops} | {seeds} | {flops} | {seconds} |")
    return lines


def contrast_lines(results: Sequence[ContrastResult]) -> list[str]:
    """Return the Markdown rows of contrasts, header first; [] for none."""
    if not results:
        return []
    lines = ["| contrast, listed before | difference | p, sign-flip | p, Holm |", "|---|---|---|---|"]
    for result in results:
        p, adjusted = (f"{value:.3f}" if value is not None else "n/a" for value in (result.p, result.p_holm))
        lines.append(f"| {result.contrast} | {result.difference} | {p} | {adjusted} |")
    return lines

"""Head-CT findings beside published numbers: macro AUROC by series, as published, and by patient, which is what counts.

CQ500 has up to eight series a patient, tilt-corrected copies among them: the 236 rows of the published test set are 71
patients. Published values are of series, and so is the first of our columns; its interval counts patients all the same
(DeLong with one influence a patient). The second column has one score a patient, the mean over its series.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmct.datasets import cq500, rsna_ich
from fmct.inference.predictions import Prediction
from fmct.metrics.delong import Auroc, auroc, auroc_interval, mean_auroc

MODELS = ("Merlin", "Google CT", "FM-HCT")
PROBE: dict[str, dict[str, tuple[float, ...]]] = {
    "rsna": {
        "any": (0.753, 0.891, 0.925),
        "intraparenchymal": (0.748, 0.881, 0.906),
        "intraventricular": (0.784, 0.930, 0.953),
        "subarachnoid": (0.726, 0.843, 0.894),
        "subdural": (0.665, 0.810, 0.878),
        "macro": (0.735, 0.871, 0.911),
    },
    "cq500": {
        "ICH": (0.589, 0.831, 0.869),
        "IPH": (0.613, 0.829, 0.862),
        "IVH": (0.499, 0.887, 0.956),
        "SDH": (0.550, 0.530, 0.652),
        "EDH": (0.683, 0.595, 0.651),
        "SAH": (0.504, 0.754, 0.803),
        "BleedLocation-Left": (0.483, 0.683, 0.714),
        "BleedLocation-Right": (0.547, 0.804, 0.821),
        "MidlineShift": (0.515, 0.900, 0.762),
        "MassEffect": (0.516, 0.786, 0.906),
        "macro": (0.550, 0.760, 0.800),
    },
}
"""AUROC of a linear probe, (Merlin, Google CT, FM-HCT), digitised from the authors' figure: ± .005."""
FINE_TUNED: dict[str, dict[str, tuple[float, ...]]] = {
    "rsna": {
        "any": (0.913, math.nan, 0.940),
        "intraparenchymal": (0.898, math.nan, 0.924),
        "intraventricular": (0.945, math.nan, 0.937),
        "subarachnoid": (0.876, math.nan, 0.911),
        "subdural": (0.881, math.nan, 0.909),
        "macro": (0.903, math.nan, 0.924),
    },
    "cq500": {
        "ICH": (0.714, math.nan, 0.896),
        "IPH": (0.734, math.nan, 0.915),
        "IVH": (0.685, math.nan, 0.959),
        "SDH": (0.65, math.nan, 0.648),
        "EDH": (0.826, math.nan, 0.726),
        "SAH": (0.638, math.nan, 0.836),
        "BleedLocation-Left": (0.614, math.nan, 0.791),
        "BleedLocation-Right": (0.649, math.nan, 0.858),
        "MidlineShift": (0.655, math.nan, 0.910),
        "MassEffect": (0.644, math.nan, 0.947),
        "macro": (0.68, math.nan, 0.849),
    },
}
"""AUROC after fine-tuning; FM-HCT's ± .005, Merlin's ± .02, Google CT's not published."""
REPORTED = {"rsna": rsna_ich.PUBLISHED_FINDINGS, "cq500": cq500.PUBLISHED_FINDINGS}


@dataclass(frozen=True)
class TableRow:
    """One finding, or their macro mean: our AUROC by series and by patient, and the published ones."""

    finding: str
    series: Auroc
    patients: Auroc
    published: tuple[float, ...]


def findings_table(
    predictions: Sequence[Prediction],
    labels: Mapping[str, Mapping[str, float]],
    *,
    published: str = "",
    fine_tuned: bool = False,
) -> list[TableRow]:
    """Return a row a finding and a last one, macro, over predictions of one split and seed.

    labels: {target: {series: 0 or 1}}, unknown ones absent. published: rsna or cq500; macro is then over the findings
    whose mean was published, and None of ours replaces one that is undefined.
    """
    source = (FINE_TUNED if fine_tuned else PROBE).get(published, {})
    nothing = (math.nan,) * len(MODELS)
    targets = list(dict.fromkeys(prediction.target for prediction in predictions))
    rows = [
        TableRow(
            target,
            *_aurocs([p for p in predictions if p.target == target and p.series in labels[target]], labels[target]),
            source.get(target, nothing),
        )
        for target in targets
    ]
    averaged = [row for row in rows if not published or row.finding in REPORTED[published]]
    whole = not published or {row.finding for row in averaged} == set(REPORTED[published])
    macro = TableRow(
        "macro" if whole else f"macro of {len(averaged)}",
        mean_auroc([row.series for row in averaged]),
        mean_auroc([row.patients for row in averaged]),
        source.get("macro", nothing) if whole else nothing,
    )
    return [*rows, macro]


def _aurocs(rows: Sequence[Prediction], labels: Mapping[str, float]) -> tuple[Auroc, Auroc]:
    """Return (by series, by patient): a patient has the mean probability of its series, and their largest label."""
    scores = np.array([row.probability for row in rows])
    truth = np.array([labels[row.series] for row in rows])
    owners = [row.patient for row in rows]
    people = list(dict.fromkeys(owners))
    members = [[number for number, owner in enumerate(owners) if owner == person] for person in people]
    merged = np.array([scores[numbers].mean() for numbers in members])
    any_positive = np.array([truth[numbers].max() for numbers in members])
    return auroc(scores, truth, owners), auroc(merged, any_positive, people)


def table_text(rows: Sequence[TableRow]) -> str:
    """Return the table as Markdown, values with 95 % intervals."""
    lines = [
        f"| finding | ours, patients (95 %) | ours, series (95 %) | {' | '.join(f'{m}, series' for m in MODELS)} |",
        f"|---|---:|---:|{'---:|' * len(MODELS)}",
    ]
    for row in rows:
        published = " | ".join("–" if math.isnan(value) else f"{value:.3f}" for value in row.published)
        lines.append(f"| {row.finding} | {_cell(row.patients)} | {_cell(row.series)} | {published} |")
    return "\n".join(lines)


def table_tree(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """Return the table as plain values for JSON; undefined is null and has its reason beside it."""
    tree = []
    for row in rows:
        entry: dict[str, Any] = {"finding": row.finding}
        for unit, found in (("patients", row.patients), ("series", row.series)):
            value = auroc_interval(found)
            entry[unit] = {"auroc": value.estimate, "low": value.low, "high": value.high, "note": value.note}
        entry["published"] = {
            model: None if math.isnan(value) else value for model, value in zip(MODELS, row.published, strict=True)
        }
        tree.append(entry)
    return tree


def _cell(found: Auroc) -> str:
    interval = auroc_interval(found)
    if interval.estimate is None:
        return f"n/a ({interval.note})"
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.3f} (no interval)"
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"

"""What the SYNTHETIC grid of attention-guided slabs found: AUROC and hits with intervals, contrasts listed before."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import write_json, write_text
from fmct.errors import DataError
from fmct.experiment.table import cells_by_row
from fmct.metrics.contrasts import Contrast, average_seeds, compare_arms, holm
from fmct.metrics.delong import Auroc, auroc, auroc_interval, mean_auroc, paired_delong
from fmct.metrics.intervals import Interval, t_interval

FORMAT = ("fmct-experiment", "1.0")
TITLE = "SYNTHETIC: angiograms drawn from formulas. No patient; beside no clinical number"


def write_attention_table(
    folder: Path, cells: Sequence[Mapping[str, Any]], contrasts: Sequence[Contrast], *, left: int
) -> str:
    """Write FOLDER/results.json and results.md of the finished cells, and return the text.

    Seeds: the mean AUROC, with DeLong's variance of the mean over patients; hits are averaged within a patient. A
    contrast is left out until both of its arms have the same seeds.
    """
    rows = cells_by_row(cells)
    ranked = {row: _mean_auroc(own) for row, own in rows.items()}
    hits = {row: [cell["scores"]["hit"] for cell in own] for row, own in rows.items() if "hit" in own[0]["scores"]}
    ready = [c for c in contrasts if _seeds(rows, c.first) == _seeds(rows, c.second) != []]
    found = [paired_delong(ranked[c.first], ranked[c.second]) for c in ready]
    adjusted = holm([one.p for one in found])
    looked = compare_arms(hits, [c for c in ready if c.first in hits and c.second in hits])
    lines = [f"# {TITLE}", "", f"{len(cells)} cells done, {left} left.", "", *_arms(rows, ranked, hits), ""]
    lines += ["| contrast, listed before: AUROC | difference | p, DeLong | p, Holm |", "|---|---|---|---|"]
    lines += [
        f"| {contrast} | {one.interval} | {_p(one.p)} | {_p(p)} |"
        for contrast, one, p in zip(ready, found, adjusted, strict=True)
    ]
    if looked:
        lines += ["", "| contrast: peak at an embolus | difference | p, sign flip | p, Holm |", "|---|---|---|---|"]
        lines += [f"| {r.contrast} | {r.difference} | {_p(r.p)} | {_p(r.p_holm)} |" for r in looked]
    text = "\n".join(lines) + "\n"
    tree = {
        "title": TITLE,
        "left": left,
        "auroc": {row: auroc_interval(value).to_dict() for row, value in ranked.items()},
        "hits": {row: _share(seeds).to_dict() for row, seeds in hits.items()},
        "contrasts": [
            {"contrast": str(c), "difference": one.interval.to_dict(), "p": one.p, "p_holm": p}
            for c, one, p in zip(ready, found, adjusted, strict=True)
        ],
        "hit_contrasts": [result.to_dict() for result in looked],
    }
    write_json(folder / "results.json", *FORMAT, tree)
    write_text(folder / "results.md", text)
    return text


def check_contrasts(contrasts: Sequence[Contrast], rows: Sequence[str]) -> None:
    """Raise DataError for a contrast of an arm that the grid does not have."""
    strangers = sorted({name for c in contrasts for name in (c.first, c.second)} - set(rows))
    if strangers:
        raise DataError(f"contrasts: no arm {', '.join(strangers)}; there are {', '.join(rows)}.")


def _mean_auroc(cells: Sequence[Mapping[str, Any]]) -> Auroc:
    found = []
    for cell in cells:
        logits, labels = cell["scores"]["logit"], cell["scores"]["label"]
        patients = sorted(logits)
        found.append(auroc(np.array([logits[p] for p in patients]), np.array([labels[p] for p in patients]), patients))
    return mean_auroc(found)


def _seeds(rows: Mapping[str, Sequence[Mapping[str, Any]]], row: str) -> list[int]:
    return sorted(cell["seed"] for cell in rows.get(row, ()))


def _share(seeds: Sequence[Mapping[str, float]]) -> Interval:
    return t_interval(list(average_seeds(list(seeds)).values()))


def _arms(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    ranked: Mapping[str, Auroc],
    hits: Mapping[str, Sequence[Mapping[str, float]]],
) -> list[str]:
    lines = [
        "| arm | AUROC by patient | attention's peak at an embolus | patients | seeds | seconds a cell |",
        "|---|---|---|---|---|---|",
    ]
    for row, own in rows.items():
        hit = str(_share(hits[row])) if row in hits else "–"
        patients, seconds = len(own[0]["scores"]["logit"]), float(np.mean([cell["seconds"] for cell in own]))
        lines.append(f"| {row} | {auroc_interval(ranked[row])} | {hit} | {patients} | {len(own)} | {seconds:.0f} |")
    return lines


def _p(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"

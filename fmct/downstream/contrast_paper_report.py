"""What a run of the published contrast system ends with: predictions, slices, a frozen threshold, and a table.

The table's counts are of this run's own scans; the published ones are derived from scans and slices a scan, never
copied (the paper's table gives one set's training slices as another's). Intervals draw patients, never slices.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import write_json, write_text
from fmct.contrast.paper_reader import slice_probabilities
from fmct.data.slice_batches import SliceScans
from fmct.downstream.contrast_paper_config import ContrastPaperTraining, thresholds_of
from fmct.downstream.contrast_paper_inputs import Inputs
from fmct.errors import ConfigError, DataError
from fmct.inference.predictions import Prediction, write_predictions
from fmct.metrics import operating_point
from fmct.metrics.bootstrap import stratified_interval
from fmct.metrics.intervals import Interval
from fmct.metrics.weighted_scores import auroc_of, f1_of
from fmct.publish.decision import Decision, write_decision
from fmct.table_files import write_rows
from fmct.tasks.contrast_paper import SLICE_THRESHOLD, ContrastPaper, scan_logit, scan_probability

FORMAT = ("fmct-contrast-paper-table", "1.0")
RESAMPLES = 1000
MEASURES = ("slice AUC", "slice F1", "scan AUC", "scan F1")
PUBLISHED: dict[str, dict[str, Any]] = {
    "headneck": {
        "scans": {"internal": 216, "external": 595},
        "slices": 66,
        "simple_cnn": ((0.982, 0.934, 0.996, 0.983), (0.975, 0.937, 1.0, 0.968)),
        "resnet101v2": ((0.989, 0.959, 0.993, 0.991), (0.987, 0.964, 1.0, 1.0)),
        "imagenet": ((0.903, 0.790, 1.0, 0.960), (0.928, 0.879, 1.0, 0.986)),
        "inception_v3": ((0.993, 0.968, 0.996, 0.987), (0.973, 0.970, 1.0, 0.999)),
        "efficientnet_b4": ((0.988, 0.964, 0.996, 0.991), (0.976, 0.970, 1.0, 1.0)),
    },
    "chest": {
        "scans": {"internal": 53, "external": 402},
        "slices": 70,
        "simple_cnn": ((0.977, 0.903, 1.0, 0.974), (0.952, 0.734, 0.952, 0.832)),
        "resnet101v2": ((0.985, 0.933, 1.0, 1.0), (0.941, 0.806, 0.969, 0.904)),
        "imagenet": ((0.975, 0.902, 1.0, 1.0), (0.950, 0.823, 0.984, 0.918)),
        "inception_v3": ((0.985, 0.916, 1.0, 1.0), (0.926, 0.787, 0.959, 0.880)),
        "efficientnet_b4": ((0.998, 0.973, 1.0, 1.0), (0.948, 0.821, 0.980, 0.923)),
    },
}
"""Ye et al. 2022, tables of the results: by network, (internal, external) of MEASURES; scans a set, slices a scan."""


@dataclass(frozen=True)
class Scored:
    """A split, scored. slices: each scan's (S,) probabilities; probability: (N,) of the scans."""

    split: str
    scans: SliceScans
    slices: list[np.ndarray]
    probability: np.ndarray


@dataclass(frozen=True)
class Row:
    """A row of the table: how many scans and slices, and MEASURES, published ones as plain numbers."""

    name: str
    scans: int
    slices: int
    values: tuple[Interval | float, ...]


def conclude(config: ContrastPaperTraining, inputs: Inputs, task: ContrastPaper) -> str:
    """Write predictions.csv, slices.csv, decision.json, table.json and table.md into a run folder; return the table."""
    if config.published and config.published not in PUBLISHED:
        raise ConfigError(f"published: expected {', '.join(PUBLISHED)} or nothing, got {config.published!r}.")
    folder, (validation, test) = Path(config.output), config.splits[1:]
    scored = {split: score(task, inputs.scans[split], split, config.aggregate) for split in (validation, test)}
    decision = freeze(config, inputs, scored[validation])
    target = inputs.cohort.targets[0]
    threshold = decision.thresholds.get(target, math.nan)
    predictions = [row for part in scored.values() for row in _predictions(part, target, threshold, config.seed)]
    predictions += [
        Prediction(s.patient, s.entry.id, target, math.nan, split=s.split, seed=str(config.seed), error=str(why))
        for s, why in inputs.refused
        if s.split in scored
    ]
    write_predictions(folder / "predictions.csv", predictions)
    columns = ("patient", "series", "split", "slice", "probability")
    write_rows(folder / "slices.csv", columns, [row for part in scored.values() for row in _slices(part)])
    write_decision(folder, decision)
    rows = [measured(part, threshold, seed=config.seed) for part in scored.values()]
    rows += published_rows(config.published, config.network.name)
    notes = [*inputs.notes, *_left_out(inputs), _kept(task)]
    text = "\n\n".join([*notes, table_text(rows)])
    tree = {"notes": notes, "legacy": config.legacy.active, "rows": [_tree(row) for row in rows], "loss": task.history}
    write_json(folder / "table.json", *FORMAT, json.loads(json.dumps(tree, default=lambda item: item.tolist())))
    write_text(folder / "table.md", text + "\n")
    return text


def score(task: ContrastPaper, scans: SliceScans, split: str, aggregate: str) -> Scored:
    """Return what the kept network says of every scan of a split, of slices inside the scan alone."""
    network = task.chosen.eval()
    device = next(network.parameters()).device
    slices = [
        slice_probabilities(network, array[kept], device=device)
        for array, kept in zip(scans.arrays, scans.inside, strict=True)
    ]
    return Scored(split, scans, slices, np.array([scan_probability(p, aggregate) for p in slices]))


def freeze(config: ContrastPaperTraining, inputs: Inputs, validation: Scored) -> Decision:
    """Return the operating point: strictly above the fixed value, or chosen on validation patients (largest scan)."""
    target, chosen = inputs.cohort.targets[0], config.threshold
    facts: dict[str, Any] = {"split": validation.split, "criterion": chosen.rule, "scans": len(validation.scans.ids)}
    if chosen.rule == "fixed":
        facts |= {"above": chosen.value}
        return Decision(rule="cls", thresholds={target: thresholds_of([chosen.value])}, validation=facts)
    patients: dict[str, tuple[float, int]] = {}
    for name, p, label in zip(validation.scans.patients, validation.probability, validation.scans.labels, strict=True):
        before = patients.get(name, (0.0, 0))
        patients[name] = (max(before[0], float(p)), max(before[1], int(label)))
    scores, labels = (np.array(column) for column in zip(*patients.values(), strict=True))
    try:
        point = operating_point.choose(scores, labels, chosen.rule, chosen.level)
    except DataError as error:
        return Decision(rule="cls", validation={**facts, "threshold": "none", "reason": str(error)})
    return Decision(rule="cls", thresholds={target: point.threshold}, validation={**facts, **point.to_dict()})


def measured(part: Scored, threshold: float, *, seed: int = 0, resamples: int = RESAMPLES) -> Row:
    """Return our row of a split: slices decide from ½ on, scans from the threshold on; intervals draw patients."""
    counts = [len(p) for p in part.slices]
    labels = part.scans.labels.astype(int)
    by_slice, people = np.concatenate(part.slices), np.array(part.scans.patients)
    slice_labels, slice_people = np.repeat(labels, counts), np.repeat(people, counts)
    decided = part.probability >= threshold
    statistics = (
        (auroc_of(by_slice, slice_labels), slice_people, slice_labels),
        (f1_of(by_slice >= SLICE_THRESHOLD, slice_labels), slice_people, slice_labels),
        (auroc_of(part.probability, labels), people, labels),
        (f1_of(decided, labels), people, labels),
    )
    values = tuple(
        stratified_interval(statistic, owners, strata, method="percentile", resamples=resamples, seed=seed)
        for statistic, owners, strata in statistics
    )
    return Row(f"ours, {part.split}", len(labels), sum(counts), values)


def published_rows(name: str, network: str) -> list[Row]:
    """Return the published rows of a network, internal and external; slices are scans × slices a scan. [] without."""
    if not name:
        return []
    source = PUBLISHED[name]
    return [
        Row(f"published, {which}", scans, scans * source["slices"], tuple(values))
        for (which, scans), values in zip(source["scans"].items(), source[network], strict=True)
    ]


def table_text(rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    lines = [f"| set | scans | slices | {' | '.join(MEASURES)} |", f"|---|---:|---:|{'---:|' * len(MEASURES)}"]
    for row in rows:
        cells = " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values)
        lines.append(f"| {row.name} | {row.scans} | {row.slices} | {cells} |")
    return "\n".join(lines)


def _predictions(part: Scored, target: str, threshold: float, seed: int) -> list[Prediction]:
    rows = []
    for name, p in zip(part.scans.ids, part.probability.tolist(), strict=True):
        patient, series = name.split("/")
        decided = None if math.isnan(threshold) else int(p >= threshold)
        rows.append(
            Prediction(
                patient,
                series,
                target,
                p,
                logit=scan_logit(p),
                decision=decided,
                threshold=threshold,
                seed=str(seed),
                split=part.split,
            )
        )
    return rows


def _slices(part: Scored) -> list[dict[str, Any]]:
    rows = []
    for name, kept, slices in zip(part.scans.ids, part.scans.inside, part.slices, strict=True):
        patient, series = name.split("/")
        names = {"patient": patient, "series": series, "split": part.split}
        numbers = np.flatnonzero(kept).tolist()
        rows += [{**names, "slice": n, "probability": p} for n, p in zip(numbers, slices.tolist(), strict=True)]
    return rows


def _left_out(inputs: Inputs) -> list[str]:
    codes = [why.code for _, why in inputs.refused]
    if not codes:
        return []
    counts = ", ".join(f"{codes.count(code)} {code}" for code in sorted(set(codes)))
    return [f"Left out: {counts} (left_out.csv)."]


def _kept(task: ContrastPaper) -> str:
    if not task.history:
        return "No epoch was completed: the weights are the last ones."
    if task.best is None:
        return f"Weights of the last of {len(task.history)} epochs (legacy.last_epoch)."
    loss = math.nan if task.best_loss is None else task.best_loss
    epochs = len(task.history)
    return f"Weights of update {task.best_step}: its validation loss {loss:.4f} is the lowest of {epochs} epochs."


def _tree(row: Row) -> dict[str, Any]:
    values = {
        measure: value.to_dict() if isinstance(value, Interval) else {"estimate": value}
        for measure, value in zip(MEASURES, row.values, strict=True)
    }
    return {"set": row.name, "scans": row.scans, "slices": row.slices, **values}

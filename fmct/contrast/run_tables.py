"""What a contrast run leaves at its end: the HU baseline on its splits, both models' predictions, and a small table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import write_json, write_text
from fmct.contrast.gate import ContrastGate
from fmct.contrast.hu_baseline import BaselineCall, HuBaseline, Labelled, fit_baseline, write_baseline
from fmct.contrast.hu_features import FEATURES, scan_features
from fmct.data.cohort import Cohort
from fmct.data.sample import Sample
from fmct.data.series import scan_of_entry
from fmct.errors import DataError
from fmct.inference.predictions import Prediction, write_predictions
from fmct.metrics.delong import auroc
from fmct.models.contrast import PHASES
from fmct.publish.decision import Decision
from fmct.publish.layout import BASELINE
from fmct.publish.load_model import PublishedModel
from fmct.table_files import read_rows, write_rows
from fmct.tasks.contrast import LABELS

PREDICTIONS, OF_BASELINE = "predictions.csv", "predictions_hu.csv"
FORMAT = ("fmct-contrast-table", "1.0")
_FEATURES_FILE = "hu_features.csv"


def conclude(
    run: str | Path,
    model: PublishedModel,
    cohort: Cohort,
    *,
    splits: Sequence[str] = ("validation", "test"),
    rule: str = "youden",
    level: float = 0.95,
    abstain: Sequence[float] = (),
) -> str:
    """Fit the baseline, predict `splits` with both, write it all into a run folder, and return the table's text.

    cohort: with LABELS as its targets. RUN gets baseline.json, predictions.csv and predictions_hu.csv (which `fmct
    evaluate encoder=RUN/predictions.csv hu=RUN/predictions_hu.csv RUN/cohort.csv REPORT --unit series` compares),
    hu_features.csv, table.md and table.json. With too few labelled series there is no baseline, and the text says why.
    """
    run = Path(run)
    features = _features(run, model, cohort)
    baseline, note = None, ""
    try:
        baseline = fit_baseline(
            _labelled(cohort, features, "train"), _labelled(cohort, features, splits[0]),
            rule=rule, level=level, abstain=abstain,
        )  # fmt: skip
        write_baseline(run / BASELINE, baseline)
    except DataError as error:
        note = str(error)
    gate = ContrastGate(model)
    samples = [sample for split in splits for sample in cohort.samples if sample.split == split]
    of_encoder = [_by_encoder(gate, cohort, sample) for sample in samples]
    write_predictions(run / PREDICTIONS, [row for rows in of_encoder for row in rows[0]])
    measured = {"encoder": [rows[1] for rows in of_encoder]}
    if baseline is not None and samples:
        calls = baseline.calls(np.stack([features[sample.entry.id] for sample in samples]))
        pairs = [_by_baseline(baseline, sample, call) for sample, call in zip(samples, calls, strict=True)]
        write_predictions(run / OF_BASELINE, [row for rows in pairs for row in rows[0]])
        measured["HU baseline"] = [rows[1] for rows in pairs]
    table = [_line(name, split, rows) for split in splits for name, rows in measured.items()]
    return _written(run, [line for line in table if line["series"]], note)


def _features(run: Path, model: PublishedModel, cohort: Cohort) -> dict[str, np.ndarray]:
    """Return {series: HU features}, from RUN/hu_features.csv as far as it holds them for the same voxels."""
    path, found, rows = run / _FEATURES_FILE, {}, []
    kept = {row["content"]: row for row in read_rows(path)} if path.is_file() else {}
    for sample in cohort.samples:
        entry = sample.entry
        row: Mapping[str, Any] | None = kept.get(entry.content_hash)
        if row is None or not set(FEATURES) <= row.keys():
            computed = scan_features(scan_of_entry(model.preprocessing, cohort.store, entry))
            row = dict(zip(FEATURES, computed.tolist(), strict=True))
        found[entry.id] = np.array([math.nan if row[name] in ("", None) else float(row[name]) for name in FEATURES])
        values = found[entry.id].tolist()
        numbers = {name: None if math.isnan(v) else v for name, v in zip(FEATURES, values, strict=True)}
        rows.append({"series": entry.id, "content": entry.content_hash, **numbers})
    write_rows(path, ("series", "content", *FEATURES), rows)
    return found


def _labelled(cohort: Cohort, features: Mapping[str, np.ndarray], split: str) -> Labelled:
    samples = [sample for sample in cohort.samples if sample.split == split]
    rows = np.array([features[sample.entry.id] for sample in samples]).reshape(-1, len(FEATURES))
    return Labelled(rows, np.array([sample.labels for sample in samples]).reshape(-1, len(LABELS)))


Measured = tuple[Sample, float, str, str | None, float | None]


def _by_encoder(gate: ContrastGate, cohort: Cohort, sample: Sample) -> tuple[list[Prediction], Measured]:
    call = gate.of_scan(scan_of_entry(gate.model.preprocessing, cohort.store, sample.entry))
    decision = gate.model.decision or Decision()
    rows = _rows(sample, decision, call.probability, call.phases, call.reason)
    return rows, (sample, call.probability, call.decision, call.phase, call.seconds)


def _by_baseline(baseline: HuBaseline, sample: Sample, call: BaselineCall) -> tuple[list[Prediction], Measured]:
    rows = _rows(sample, baseline.decision, call.probability, call.shares, "")
    return rows, (sample, call.probability, call.decision, call.phase, call.seconds)


def _rows(
    sample: Sample, decision: Decision, probability: float, phases: Mapping[str, float], error: str
) -> list[Prediction]:
    values = {LABELS[0]: probability, **{f"phase_{name}": share for name, share in phases.items()}}
    rows = []
    for target, value in values.items():
        threshold = decision.thresholds.get(target, math.nan)
        decided = None if math.isnan(threshold) or math.isnan(value) else int(value >= threshold)
        rows.append(
            Prediction(
                sample.patient,
                sample.entry.id,
                target,
                value,
                decision=decided,
                threshold=threshold,
                split=sample.split,
                error=error,
            )
        )
    return rows


def _line(name: str, split: str, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return one row of the table: AUROC by series, calls, phases and times of one model on one split."""
    rows = [one for one in measured if one[0].split == split]
    judged = [one for one in rows if not math.isnan(one[1]) and not math.isnan(one[0].labels[0])]
    truth = np.array([one[0].labels[0] for one in judged])
    scores = np.array([one[1] for one in judged])
    area = auroc(scores, truth, [one[0].patient for one in judged]).value if len(judged) else math.nan
    sure = [one for one in judged if one[2] != "uncertain"]
    phased = [one for one in rows if one[3] and sum(one[0].labels[1:-1]) == 1]
    right = [one[3] == PHASES[int(np.argmax(one[0].labels[1:-1]))] for one in phased]
    late = [abs(one[4] - one[0].labels[-1]) for one in rows if one[4] is not None and not math.isnan(one[0].labels[-1])]
    wrong = sum((one[2] == "yes") != bool(one[0].labels[0]) for one in sure)
    return {
        "model": name,
        "split": split,
        "series": len(rows),
        "auroc": None if math.isnan(area) else area,
        "uncertain": len(rows) - len([one for one in rows if one[2] != "uncertain"]),
        "wrong_calls": wrong,
        "phase_right": sum(right),
        "phase_known": len(right),
        "seconds_error": float(np.mean(late)) if late else None,
        "seconds_known": len(late),
    }


def _written(run: Path, table: Sequence[Mapping[str, Any]], note: str) -> str:
    lines = [
        "| model | split | series | AUROC by series | uncertain | wrong calls | phase right | mean error, s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        area = "n/a" if row["auroc"] is None else f"{row['auroc']:.3f}"
        phase = f"{row['phase_right']}/{row['phase_known']}" if row["phase_known"] else "–"
        late = "–" if row["seconds_error"] is None else f"{row['seconds_error']:.0f} ({row['seconds_known']})"
        cells = (row["model"], row["split"], row["series"], area, row["uncertain"], row["wrong_calls"], phase, late)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    text = "\n".join([*([f"No HU baseline: {note}\n"] if note else []), *lines])
    write_json(run / "table.json", *FORMAT, {"rows": [dict(row) for row in table], "note": note})
    write_text(run / "table.md", text + "\n")
    return text


def with_baseline(predictions: Sequence[str]) -> list[str]:
    """Return what `fmct evaluate` compares: a folder that brings the HU baseline's predictions, with them beside it.

    predictions: PATH or NAME=PATH each. Two or more, and a table in place of its folder, stay as they are.
    """
    given = list(predictions)
    if len(given) == 1:
        _, found, rest = given[0].partition("=")
        path = Path(rest if found and not Path(given[0]).exists() else given[0])
        if (path / PREDICTIONS).is_file() and (path / OF_BASELINE).is_file():
            given.append(f"HU baseline={path / OF_BASELINE}")
    return given

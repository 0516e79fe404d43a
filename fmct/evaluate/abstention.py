"""Models that may abstain: in which band of probabilities their call is `uncertain`, and what the decided ones give."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import read_json
from fmct.inference.predictions import FORMAT, RECORD, Prediction
from fmct.publish.decision import Decision, read_decision

Bands = Mapping[tuple[str, str], tuple[float, float]]  # {(seed, target): (low, high)}
TABLE = "predictions"  # the name of a model's own table, without its suffix
UNCERTAIN = "share uncertain"
DECIDED = ("accuracy, decided cases", "sensitivity, decided cases", "specificity, decided cases")


def bands_of(table: Path, rows: Sequence[Prediction]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return {(seed, target): (low, high)} of the probabilities that the model behind a table calls uncertain.

    The model's decision lies beside the table: in the record of `fmct predict`, or as a run's decision.json. It is
    taken for rows that carry its threshold; other rows, and other tables of the folder, are another model's. Raises
    ArtefactError for a decision that is not readable.
    """
    decision = _decision_beside(table)
    if decision is None:
        return {}
    return {
        (row.seed, row.target): decision.abstain[row.target]
        for row in rows
        if row.target in decision.abstain and row.threshold == decision.thresholds[row.target]
    }


def mean_bands(units: Sequence[Sequence[Prediction]], bands: Bands) -> np.ndarray | None:
    """Return (n, 2) low and high of n units: means over a unit's rows, as thresholds are, NaN where all rows failed.

    None where some row that did not fail has no band, or all failed.
    """
    predicted = [[(row.seed, row.target) for row in rows if not row.failed] for rows in units]
    if not any(predicted) or any(key not in bands for keys in predicted for key in keys):
        return None
    return np.array([np.mean([bands[key] for key in keys], axis=0) if keys else [np.nan] * 2 for keys in predicted])


def in_band(probabilities: np.ndarray, bands: np.ndarray | None) -> np.ndarray:
    """Return (n,) bool: from low on and below high, as Decision.call has it. NaN (a failed scan) is outside."""
    if bands is None:
        return np.zeros(len(probabilities), dtype=bool)
    return (probabilities >= bands[:, 0]) & (probabilities < bands[:, 1])


def abstention_facts(labels: np.ndarray, uncertain: np.ndarray, bands: np.ndarray | None) -> dict[str, Any] | None:
    """Return what results.json says beside the metrics: the bands that were met and counts; None without a band."""
    if bands is None:
        return None
    return {
        "bands": np.unique(bands[~np.isnan(bands[:, 0])], axis=0).tolist(),
        "uncertain": int(uncertain.sum()),
        "uncertain, positive": int((uncertain & (labels == 1)).sum()),
        "decided": int((~uncertain).sum()),
    }


def _decision_beside(table: Path) -> Decision | None:
    if table.stem != TABLE:
        return None
    record = table.with_name(RECORD)
    if not record.is_file():
        return read_decision(table.parent)
    tree = read_json(record, *FORMAT).get("decision")
    return Decision.from_dict(tree, str(record)) if tree else None

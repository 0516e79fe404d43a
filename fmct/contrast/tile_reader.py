"""What a contrast model says of a series, and where: presence, phase and time of all its tiles, and of each alone.

`fmct predict` reads series of the kind "contrast" through this module (fmct.inference.series_readers).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fmct.contrast.hu_baseline import BaselineCall, baseline_in
from fmct.contrast.hu_features import scan_features
from fmct.errors import ArtefactError
from fmct.inference.series_readers import Reading
from fmct.inference.sliding_window import batch_size
from fmct.models.contrast import ContrastNetwork
from fmct.precision import compute_dtype
from fmct.publish.decision import Decision
from fmct.publish.load_model import PublishedModel
from fmct.tasks.contrast import LABELS
from fmct.tiling import Grid, Scan

PRESENCE = LABELS[0]


@dataclass(frozen=True)
class Tile:
    """A tile by itself. z_low_mm, z_high_mm: what it shows of the series along the body, RAS; weight: in the decision.

    probability: of contrast, were this tile all that there is.
    """

    z_low_mm: float
    z_high_mm: float
    probability: float
    weight: float


@dataclass(frozen=True)
class SeriesContrast:
    """logits: (T,) float64 of the model's targets, uncalibrated. phases: {phase: probability}.

    told: phase, phase_probability, seconds, as far as the model has them. tiles: from feet to head; planned: how many
    there were before those in air were left out.
    """

    logits: torch.Tensor
    phases: dict[str, float]
    told: dict[str, Any]
    tiles: tuple[Tile, ...]
    planned: int


def read_contrast(model: PublishedModel, scan: Scan, *, precision: str = "auto") -> SeriesContrast:
    """Return what a model of kind "contrast" says of a scan (of model.preprocessing.scan). Raises ArtefactError."""
    network = model.module
    if not isinstance(network, ContrastNetwork):
        raise ArtefactError(
            f"{model.origin}: a {model.record.kind} model tells no contrast. Name one of kind contrast."
        )
    dtype = compute_dtype(precision, model.device)
    features, starts, grid = [], [], None
    with torch.no_grad(), torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        for tiles in model.preprocessing.batches(scan, batch_size=batch_size(model), device=model.device):
            output = network(tiles.tensor.to(model.device), tiles.spacing_mm.to(model.device))
            features.append(output.features.float())
            starts.append(tiles.start_voxels)
            grid = tiles.grid
        assert grid is not None, "a series has at least one tile"
        rows = torch.cat(features)
        numbers = torch.arange(len(rows), device=rows.device)
        values, weights = network.head.values(rows, torch.zeros_like(numbers), 1)
        alone, _ = network.head.values(rows, numbers, len(rows))
    temperature = model.decision.temperature.get(PRESENCE, 1.0) if model.decision else 1.0
    single = torch.sigmoid(alone[:, 0].double() / temperature).tolist()
    spans = _spans(grid, np.concatenate(starts), model.preprocessing.body_axis)
    found = [
        Tile(*span, probability, weight)
        for span, probability, weight in zip(spans, single, weights.double().tolist(), strict=True)
    ]
    return SeriesContrast(
        logits=network.head.logits(values)[0].double().cpu(),
        phases=network.head.shares(values[0].double().cpu()),
        told=network.head.told(values[0].double().cpu()),
        tiles=tuple(sorted(found, key=lambda tile: (tile.z_low_mm, tile.z_high_mm))),
        planned=len(grid.starts),
    )


def read_series(model: PublishedModel, scan: Scan, *, precision: str) -> Reading:
    """Return the reading that `fmct predict` writes: logits, and the tables `contrast` and `tiles`."""
    found = read_contrast(model, scan, precision=precision)
    logit = float(found.logits[0])
    probability = calibrated_probability(model, logit)
    row = {"probability": probability, "call": call_of(model, probability), "logit": logit, **found.told}
    tables = {"contrast": [row], "tiles": tile_rows(found.tiles)}
    baseline = baseline_in(model.folder)
    if baseline is not None:
        call = baseline.calls(scan_features(scan)[None])[0]
        row |= {"baseline_probability": call.probability, "baseline_call": call.decision}
        tables["predictions_hu"] = _baseline_rows(baseline.decision, call)
    return Reading(
        logits=found.logits,
        tables=tables,
        windows=found.planned,
        looked_at=len(found.tiles),
    )


def calibrated_probability(model: PublishedModel, logit: float) -> float:
    """Return the probability of contrast that a series' logit means, by the temperature that the model carries."""
    temperature = model.decision.temperature.get(PRESENCE, 1.0) if model.decision else 1.0
    return 1 / (1 + math.exp(-min(max(logit / temperature, -700.0), 700.0)))


def call_of(model: PublishedModel, probability: float) -> str:
    """Return `yes`, `no` or `uncertain`; uncertain where no operating point was frozen, which says nothing."""
    return (model.decision.call(PRESENCE, probability) if model.decision else "") or "uncertain"


def tile_rows(tiles: Sequence[Tile]) -> list[dict[str, Any]]:
    """Return the rows of tiles.csv, numbered from the lowest tile on."""
    return [{"tile": number, **vars(tile)} for number, tile in enumerate(tiles, start=1)]


def _baseline_rows(decision: Decision, call: BaselineCall) -> list[dict[str, Any]]:
    """Return the rows of predictions_hu.csv for one series, as `fmct evaluate` reads them."""
    rows = []
    for target, value in {PRESENCE: call.probability, **{f"phase_{k}": v for k, v in call.shares.items()}}.items():
        threshold = decision.thresholds.get(target)
        decided = None if threshold is None else int(value >= threshold)
        rows.append({"target": target, "probability": value, "decision": decided, "threshold": threshold})
    return rows


def _spans(grid: Grid, starts: np.ndarray, axis: int) -> list[tuple[float, float]]:
    """Return (lowest, highest) z in RAS mm of the slices that each tile shows, without the air beyond the series."""
    middle = starts + (np.asarray(grid.tile) - 1) / 2
    found = []
    for centre, start in zip(middle, starts[:, axis], strict=True):
        ends = np.stack([centre, centre])
        ends[:, axis] = max(start, 0) - 0.5, min(start + grid.tile[axis], grid.shape[axis]) - 0.5
        z = ends @ grid.affine[2, :3] + grid.affine[2, 3]
        found.append((float(z.min()), float(z.max())))
    return found

"""One series through a model: rows of the tables, and its files on the scan's own grid."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fmct
from fmct.errors import DataError
from fmct.inference.components import Component, components, counted_volume
from fmct.inference.decision import Evidence, Verdict, decide
from fmct.inference.native_grid import to_scan, to_source, write_nifti
from fmct.inference.predictions import Prediction, file_part
from fmct.inference.series_readers import AttentionMap, Reading, SeriesReader, reader_of
from fmct.inference.series_source import Opened, Series
from fmct.inference.sliding_window import SeriesOutput, predict_series
from fmct.publish.decision import Decision
from fmct.publish.load_model import PublishedModel
from fmct.tiling import Grid

MASKS, PROBABILITIES, ATTENTION = "masks", "probabilities", "attention"
PREDICTION_COLUMNS = ("rule", "score", "score_threshold", "volume_mm3", "max_probability")
COMPONENT_COLUMNS = (
    "patient",
    "series",
    "target",
    "component",
    "voxels",
    "volume_mm3",
    "mean_probability",
    "max_probability",
    "x_mm",
    "y_mm",
    "z_mm",
)


@dataclass(frozen=True)
class Wanted:
    """What to write beside the tables. masks: NIfTI, and DICOM-SEG of a DICOM source. probabilities, attention: maps.

    overlap: share of a window's side that neighbours have in common. precision: auto, bf16 or fp32.
    """

    masks: bool = True
    probabilities: bool = False
    attention: bool = False
    overlap: float = 0.5
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise DataError(f"overlap {self.overlap}: expected a share of a window's side, 0 or more and below 1.")


@dataclass(frozen=True)
class SeriesResult:
    """rows: of predictions.csv, one a target; components: of components.csv; notes: what could not be written, and why;
    windows: how many there were and how many were looked at; tables: rows of further tables by name.
    """

    rows: list[dict[str, Any]]
    components: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    windows: tuple[int, int] = (0, 0)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def predict_one(model: PublishedModel, series: Series, folder: Path, wanted: Wanted) -> SeriesResult:
    """Return the rows of one series after writing its files below `folder`. Raises DataError on bad input."""
    opened = series.open()
    reader = reader_of(model.record.kind)
    if reader is not None:
        return _as_read(model, series, opened, reader, folder, wanted)
    output = predict_series(
        model,
        opened.scan,
        overlap=wanted.overlap,
        attention=wanted.attention,
        precision=wanted.precision,
    )
    if output.logits is not None:
        _check_finite(output.logits)
    maps = _on_source(output.probability, opened, output.grid) if output.probability is not None else None
    limits = model.decision or Decision()
    result = SeriesResult([], windows=(output.windows, output.looked_at))
    if opened.source.note:
        result.notes.append(opened.source.note)
    for number, target in enumerate(model.targets):
        found = None
        if maps is not None:
            found = components(maps[number], opened.source.affine, threshold=limits.mask_probability)
            result.components.extend(_component_row(series, target, part) for part in found)
        evidence = _evidence(output, number, maps, found, limits)
        verdict = decide(model.decision, target, evidence)
        result.rows.append(_row(series, target, evidence, verdict, model))
    if maps is not None:
        _write_maps(model, series, folder, wanted, maps, opened, result, limits)
    if wanted.attention:
        seen = AttentionMap(output.attention, output.grid) if output.attention is not None else None
        _write_attention(series, folder, seen, opened, result)
    return result


def _as_read(
    model: PublishedModel, series: Series, opened: Opened, reader: SeriesReader, folder: Path, wanted: Wanted
) -> SeriesResult:
    """Return the rows and tables of a series that a kind of model reads in its own way."""
    reading: Reading = reader.read_series(model, opened.scan, precision=wanted.precision)
    _check_finite(reading.logits)
    names = {"patient": series.patient, "series": series.series, "split": series.split}
    result = SeriesResult([], notes=list(reading.notes), windows=(reading.windows, reading.looked_at))
    result.tables.update({name: [{**names, **row} for row in rows] for name, rows in reading.tables.items()})
    for logit, target in zip(reading.logits.tolist(), model.targets, strict=True):
        evidence = Evidence(logit)
        result.rows.append(_row(series, target, evidence, decide(model.decision, target, evidence), model))
    if wanted.attention:
        seen = reading.attention() if reading.attention is not None else None
        _write_attention(series, folder, seen, opened, result)
    return result


def _check_finite(logits: torch.Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise DataError("the model's logits are not finite on this series: it was trained on nothing like it.")


def failure_rows(model: PublishedModel, series: Series, error: str) -> list[dict[str, Any]]:
    """Return the rows of a series that could not be predicted: no probability, and why."""
    return [
        vars(Prediction(series.patient, series.series, target, math.nan, split=series.split, error=error))
        for target in model.targets
    ]


def _on_source(maps: torch.Tensor, opened: Opened, grid: Grid) -> list[np.ndarray]:
    """Return K float32 maps (D, H, W) in the order of the file's own voxels."""
    on_scan = to_scan(maps, grid, opened.scan.shape)
    return [to_source(part, opened.scan.affine, opened.source) for part in on_scan]


def _evidence(
    output: SeriesOutput,
    number: int,
    maps: Sequence[np.ndarray] | None,
    found: list[Component] | None,
    limits: Decision,
) -> Evidence:
    logit = float(output.logits[number]) if output.logits is not None else math.nan
    if maps is None or found is None:
        return Evidence(logit)
    volume = counted_volume(found, probability=limits.component_probability, min_volume_mm3=limits.min_volume_mm3)
    return Evidence(logit, volume, float(maps[number].max()))


def _row(series: Series, target: str, evidence: Evidence, verdict: Verdict, model: PublishedModel) -> dict[str, Any]:
    decided = verdict.decision is not None
    rule = model.decision.rule if decided and model.decision else ""
    prediction = Prediction(
        series.patient,
        series.series,
        target,
        verdict.probability,
        logit=evidence.logit,
        decision=int(verdict.decision) if verdict.decision is not None else None,
        # The table's threshold is one of probabilities; that of a volume stands in score_threshold.
        threshold=verdict.threshold if rule != "volume" else math.nan,
        seed=str(model.facts.get("seed", "")) if model.facts.get("seed") is not None else "",
        split=series.split,
    )
    return {
        **vars(prediction),
        "rule": rule,
        "score": verdict.score if decided else math.nan,
        "score_threshold": verdict.threshold,
        "volume_mm3": evidence.volume_mm3,
        "max_probability": evidence.max_probability,
    }


def _component_row(series: Series, target: str, part: Component) -> dict[str, Any]:
    place = dict(zip(("x_mm", "y_mm", "z_mm"), part.centroid_mm, strict=True))
    values = {name: getattr(part, name) for name in ("voxels", "volume_mm3", "mean_probability", "max_probability")}
    return {
        "patient": series.patient,
        "series": series.series,
        "target": target,
        "component": part.number,
        **values,
        **place,
    }


def _write_maps(
    model: PublishedModel,
    series: Series,
    folder: Path,
    wanted: Wanted,
    maps: Sequence[np.ndarray],
    opened: Opened,
    result: SeriesResult,
    limits: Decision,
) -> None:
    inside = [part >= limits.mask_probability for part in maps]
    for name, target in zip(_names(series, model.targets), range(len(model.targets)), strict=True):
        if wanted.masks:
            write_nifti(folder / MASKS / f"{name}.nii.gz", inside[target].view(np.uint8), opened.source)
        if wanted.probabilities:
            write_nifti(folder / PROBABILITIES / f"{name}.nii.gz", maps[target], opened.source)
    if wanted.masks and opened.dicom and not opened.source.note:
        from fmct.io.dicom_seg import SegmentationModel, write_segmentation

        maker = SegmentationModel("fmct " + model.record.kind, fmct.__version__, model.fingerprint or "unpublished")
        try:
            write_segmentation(
                folder / MASKS / f"{series.series}.dcm",
                np.stack(inside),
                opened.source.affine,
                opened.dicom,
                labels=model.targets,
                model=maker,
            )
        except DataError as error:
            result.notes.append(str(error))


def _write_attention(
    series: Series, folder: Path, seen: AttentionMap | None, opened: Opened, result: SeriesResult
) -> None:
    if seen is None:
        result.notes.append("no attention map: the network gives none, or the series is more than one tile of it")
        return
    values = _on_source(seen.attention[None], opened, seen.grid)[0]
    write_nifti(folder / ATTENTION / f"{series.series}.nii.gz", values, opened.source)


def _names(series: Series, targets: tuple[str, ...]) -> Iterator[str]:
    """Yield a file name for each target: the series' own where there is one target."""
    for target in targets:
        yield series.series if len(targets) == 1 else f"{series.series}_{file_part(target)}"

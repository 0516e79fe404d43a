"""Predicted masks of a cohort beside their references: per patient first, then the cohort, and its FROC."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from fmct.errors import DataError
from fmct.inference.predictions import file_part
from fmct.io.masks import MaskGrid, read_mask
from fmct.metrics.froc import Froc, froc
from fmct.metrics.intervals import Interval, bootstrap_interval
from fmct.metrics.lesions import MatchedScan, MatchingRule, match_lesions
from fmct.metrics.overlap_scores import SURFACE_TOLERANCE_MM, OverlapScores, overlap_scores
from fmct.volume import CANONICAL, Volume

_NAME = re.compile(r"(\.nii(\.gz)?|\.dcm)$", re.IGNORECASE)
_SAME_PLACE_MM = 0.1
MASK_FROM = 0.5  # a voxel belongs to the predicted mask from this value on
METRICS = {
    "Dice": "dice",
    "surface Dice": "surface_dice",
    "HD95, mm": "hd95_mm",
    "volume error, ml": "volume_error_ml",
}


@dataclass(frozen=True)
class Segmented:
    """One series: its scores and matched lesions, and the files, for pictures. note: why it failed, "" otherwise."""

    patient: str
    series: str
    scores: OverlapScores
    matched: MatchedScan
    predicted: Path | None
    reference: Path | None
    note: str = ""


@dataclass(frozen=True)
class SegmentationResult:
    """One model's masks. values: {metric: {patient: value}}, defined ones only; summary: mean with interval over them.

    spread: {metric: (SD, median, lower quartile, upper quartile)}. false_ml: predicted volume of patients without
    lesion. froc: None where no reference has a lesion.
    """

    model: str
    series: Sequence[Segmented]
    values: Mapping[str, Mapping[str, float]]
    summary: Mapping[str, Interval]
    spread: Mapping[str, tuple[float, float, float, float]]
    false_ml: Interval
    froc: Froc | None
    rule: MatchingRule
    tolerance_mm: float
    notes: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "model": self.model,
            "summary": {name: interval.to_dict() for name, interval in self.summary.items()},
            "spread": {
                name: dict(zip(("sd", "median", "lower_quartile", "upper_quartile"), four, strict=True))
                for name, four in self.spread.items()
            },
            "predicted_ml_without_lesion": self.false_ml.to_dict(),
            "froc": self.froc.to_dict() if self.froc else None,
            "matching_rule": {**vars(self.rule), "text": str(self.rule)},
            "surface_tolerance_mm": self.tolerance_mm,
            "mask_from": MASK_FROM,
            "notes": list(self.notes),
        }


def measure_masks(
    model: str,
    predicted: Path,
    reference: Path,
    patients: Mapping[str, str],
    *,
    negatives: Sequence[str] = (),
    ignore: Path | None = None,
    rule: MatchingRule | None = None,
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
    target: str = "",
    resamples: int = 2000,
    seed: int = 0,
) -> SegmentationResult:
    """Return the result of a folder of predicted masks or voxel probabilities (NIfTI) beside a folder of references.

    patients: {series: patient}. Files belong together by name: SERIES.nii.gz, or SERIES_… of a mask in either folder.
    negatives: series known to have no lesion, whose reference may be absent. A series with a reference but no
    prediction counts as an empty prediction, and a note says so. target: of several, whose files alone are read:
    SERIES_TARGET.nii.gz or SERIES/TARGET.nii.gz. Raises DataError for masks on different grids.
    """
    rule = rule or MatchingRule()
    files, truth = masks_by_series(predicted, patients, target), masks_by_series(reference, patients, target)
    ignored = masks_by_series(ignore, patients) if ignore else {}
    chosen = [s for s in sorted(patients) if s in truth or (s in negatives and s in files)]
    if not chosen:
        name = f"{next(iter(patients), 'SERIES')}{f'_{file_part(target)}.nii.gz' if target else ''}"
        raise DataError(f"{reference}: none of its masks is named by a predicted series (such as {name}).")
    series = [_measure(s, patients[s], files.get(s), truth.get(s), ignored.get(s), rule, tolerance_mm) for s in chosen]
    notes = [f"{s.series}: {s.note}" for s in series if s.note]
    values = {name: _per_patient(series, attribute) for name, attribute in METRICS.items()}
    summary = {name: _mean(found, resamples, seed) for name, found in values.items()}
    empty = _per_patient(series, "predicted_ml", lesion=False)
    matched = [s.matched for s in series]
    curve = froc(matched, resamples=resamples, seed=seed) if any(m.lesions_mm3 for m in matched) else None
    return SegmentationResult(
        model,
        series,
        values,
        summary,
        {name: _spread(found) for name, found in values.items() if found},
        _mean(empty, resamples, seed),
        curve,
        rule,
        tolerance_mm,
        notes,
    )


def read_map(path: Path) -> Volume:
    """Return a NIfTI mask or voxel probability map as a Volume of float32 in 0..1; DataError for other values."""
    try:
        image = nib.load(path)  # type: ignore[attr-defined]
        voxels = np.asarray(image.dataobj, dtype=np.float32)  # type: ignore[attr-defined]
        affine = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not readable as a predicted mask ({type(error).__name__}: {error}).") from None
    if voxels.ndim != 3 or not np.isfinite(voxels).all() or voxels.min() < 0 or voxels.max() > 1:
        raise DataError(
            f"{path}: expected a mask of 0 and 1, or voxel probabilities, on three axes; got shape {voxels.shape}, "
            f"values {np.nanmin(voxels):g} to {np.nanmax(voxels):g}."
        )
    return Volume(np.ascontiguousarray(voxels.T), affine[:, [2, 1, 0, 3]], "mask", "fraction").oriented(CANONICAL)


def _measure(
    series: str,
    patient: str,
    predicted: Path | None,
    reference: Path | None,
    ignore: Path | None,
    rule: MatchingRule,
    tolerance_mm: float,
) -> Segmented:
    found = read_map(predicted) if predicted else None
    truth = _on_grid(reference, found) if reference else None
    first = found or truth
    assert first is not None  # the caller takes series with a reference or a prediction only
    if found is not None and truth is not None:
        _same_grid(found, truth, predicted, reference)
    spacing = first.spacing.tolist()
    values = found.voxels if found is not None else np.zeros(first.shape, dtype=np.float32)
    lesion = truth.voxels > 0 if truth is not None else np.zeros(first.shape, dtype=bool)
    doubtful = _on_grid(ignore, first).voxels > 0 if ignore else None
    return Segmented(
        patient,
        series,
        overlap_scores(values >= MASK_FROM, lesion, spacing, tolerance_mm=tolerance_mm),
        match_lesions(values, lesion, spacing, rule, patient=patient, scan=series, ignore=doubtful),
        predicted,
        reference,
        "" if predicted else "no predicted mask; counted as an empty one",
    )


def _on_grid(path: Path, grid: Volume | None) -> Volume:
    return read_mask(path, grid=MaskGrid(grid.shape, grid.affine) if grid is not None else None)


def _same_grid(a: Volume, b: Volume, predicted: Path | None, reference: Path | None) -> None:
    if a.shape == b.shape:
        corners = np.array([[z, y, x] for z in (0, a.shape[0]) for y in (0, a.shape[1]) for x in (0, a.shape[2])])
        off = float(np.abs(a.world(corners) - b.world(corners)).max())
        if off <= _SAME_PLACE_MM:
            return
        what = f"both are {a.shape} voxels (zyx), but up to {off:.2g} mm apart"
    else:
        what = f"they are {a.shape} and {b.shape} voxels (zyx)"
    raise DataError(
        f"{predicted} and {reference} are not on one grid: {what}. fmct predict writes masks on the scan's own grid; "
        "give the reference as drawn on that scan."
    )


def masks_by_series(folder: Path, series: Collection[str], target: str = "") -> dict[str, Path]:
    """Return {series: file} of a folder; a name is the series', or begins with it and `_` or `-`.

    target: the names that go on with it alone; a folder between counts as `-`.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of masks.")
    names = sorted(series, key=len, reverse=True)
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if _NAME.search(p.name)):
        stem = "-".join([*path.relative_to(folder).parts[:-1], _NAME.sub("", path.name)])
        owner = _owner(stem, names, target)
        if owner is None:
            continue
        if owner in found and found[owner].suffix != ".dcm" and path.suffix != ".dcm":
            raise DataError(f"{folder}: {found[owner].name} and {path.name} both belong to series {owner}; keep one.")
        if owner not in found or path.suffix != ".dcm":  # the NIfTI of a mask that lies there in both formats
            found[owner] = path
    return found


def _owner(stem: str, names: Sequence[str], target: str) -> str | None:
    """Return the series, of `names` from the longest on, that a file without its ending belongs to."""
    if target:
        endings = {f"{mark}{part}" for mark in "_-" for part in (target, file_part(target))}
        return next((n for n in names if stem.startswith(n) and stem[len(n) :] in endings), None)
    exact = next((n for n in names if stem == n), None)
    return exact or next((n for n in names if stem.startswith((f"{n}_", f"{n}-"))), None)


def _per_patient(series: Sequence[Segmented], attribute: str, *, lesion: bool = True) -> dict[str, float]:
    """Return {patient: mean over its series} of the defined values, of series with a lesion, or of those without."""
    groups: dict[str, list[float]] = {}
    for one in series:
        value = getattr(one.scores, attribute)
        if (one.scores.reference_ml > 0) == lesion and np.isfinite(value):
            groups.setdefault(one.patient, []).append(float(value))
    return {patient: float(np.mean(values)) for patient, values in groups.items()}


def _mean(values: Mapping[str, float], resamples: int, seed: int) -> Interval:
    if not values:
        return Interval(None, None, None, 0, "bca", note="no patient has a value")
    x = np.array(list(values.values()))
    return bootstrap_interval(lambda rows: float(x[rows].mean()), list(values), resamples=resamples, seed=seed)


def _spread(values: Mapping[str, float]) -> tuple[float, float, float, float]:
    x = np.array(list(values.values()))
    lower, median, upper = np.quantile(x, [0.25, 0.5, 0.75])
    return (float(x.std(ddof=1)) if len(x) > 1 else 0.0, float(median), float(lower), float(upper))

"""`fmct predict` with a lesion detector: candidates of every series, label and scored maps on each scan's own grid."""

import json
import re
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import fmct
from fmct.artefacts import read_json, write_json
from fmct.config import plain
from fmct.errors import ArtefactError, DataError, FmctError, Refusal
from fmct.inference.native_grid import SourceGrid, to_source, write_nifti
from fmct.inference.predictions import COLUMNS, Prediction
from fmct.inference.series_source import Naming, Opened, Series, series_of
from fmct.io import ReadPolicy
from fmct.io.masks import read_mask
from fmct.lesions.candidates import COLUMNS as CANDIDATE_COLUMNS
from fmct.lesions.candidates import Candidate, scored_map
from fmct.lesions.detector import Found, LesionDetector
from fmct.lesions.preparation import to_grid
from fmct.preprocess import InputSpec, Preprocessing
from fmct.store.manifest import append_line
from fmct.store.progress import Reporter, Silent
from fmct.table_files import write_rows
from fmct.volume import UNITS, Volume
from fmct.windows import Window

FORMAT, RECORD, LEDGER = ("fmct-lesion-predictions", "1.0"), "lesions.json", "ledger.jsonl"
LABELS, MASKS, SCORES = "labels", "masks", "probabilities"  # the last two as every `fmct predict` calls them
SOURCES = "sources.csv"
_FINEST = 1e-3


@dataclass
class Summary:
    """What came of a batch. failed: (patient, series, code, reason); kept: series done by an earlier run of it."""

    folder: Path
    series: int = 0
    kept: int = 0
    lesions: int = 0
    failed: list[tuple[str, str, str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        done = self.series - len(self.failed)
        before = f"; {self.kept} of them by an earlier run" if self.kept else ""
        return (
            f"{self.folder / 'candidates.csv'}: {done} of {self.series} series predicted{before}; {self.lesions} "
            "lesions called. Research use only, not a medical device."
        )


def predict_lesions(
    model: LesionDetector,
    source: str | Path,
    folder: str | Path,
    *,
    brain_masks: str | Path | None = None,
    naming: Naming,
    policy: ReadPolicy,
    only: Container[str] | None = None,
    progress: Reporter | None = None,
) -> Summary:
    """Find lesions in every series of a file, folder or store, and return what came of it.

    `folder` gets candidates.csv (every candidate with its scores, verdict and reason; voxels on the scan's own grid),
    predictions.csv (a row a series: the highest score of a lesion that is called, else 0), masks/ (lesions called),
    probabilities/ (the scores at their voxels), labels/ (every candidate by its number), lesions.json, sources.csv, and
    ledger.jsonl with every failure and why. brain_masks: a folder of masks named as the scans or the series. The same
    call again goes on. Raises DataError
    when there is nothing to predict, ArtefactError for a folder of another model.
    """
    folder, progress = Path(folder), progress or Silent()
    found = list(
        series_of(source, level_0(model.record.prepare.modality), policy=policy, naming=naming, exclude=folder)
    )
    found = [series for series in found if only is None or series.series in only]
    if not found:
        raise DataError(
            f"{source}: nothing to predict: no {model.record.prepare.modality} series for this model there."
        )
    _open_folder(folder, model)
    done, summary = _read_ledger(folder), Summary(folder, len(found))
    masks = _mask_files(Path(brain_masks)) if brain_masks else []
    progress.start(len(found))
    try:
        for series in found:
            if series.series in done:
                summary.kept += 1
            else:
                done[series.series] = _predicted(model, series, folder, masks)
                append_line(folder / LEDGER, json.dumps(done[series.series], allow_nan=False))
            progress.advance(f"{sum(line['code'] != '' for line in done.values())} failed")
    finally:
        progress.close()
    lines = [done[series.series] for series in found]
    write_rows(folder / "candidates.csv", CANDIDATE_COLUMNS, [row for line in lines for row in line["candidates"]])
    write_rows(folder / "predictions.csv", COLUMNS, [row for line in lines for row in line["rows"]])
    if naming.key is None and any(series.path for series in found):
        rows = [{"patient": s.patient, "series": s.series, "file": s.path} for s in found]
        write_rows(folder / SOURCES, ("patient", "series", "file"), rows)
    summary.failed = [(line["patient"], line["series"], line["code"], line["reason"]) for line in lines if line["code"]]
    summary.lesions = sum(row["verdict"] == "kept" for line in lines for row in line["candidates"])
    return summary


def level_0(modality: str) -> Preprocessing:
    """Return the preprocessing under which a series is read at its own resolution, in its own units."""
    spec = InputSpec(size_voxels=(1, 1, 1), spacing_mm=(_FINEST, _FINEST, _FINEST), foreground_above=0.0)
    return Preprocessing(windows=(Window(0.0, 1.0),), input=spec, modality=modality)


def volume_of(opened: Opened, modality: str) -> Volume:
    """Return an opened series as the Volume that it was read as."""
    voxels = opened.scan.voxels
    if modality != "CT":
        voxels = voxels.astype(np.float32) * np.float32(opened.scan.scale)
    return Volume(voxels, opened.scan.affine, modality, UNITS.get(modality, "arbitrary"))


def native_candidates(candidates: Sequence[Candidate], source: SourceGrid) -> list[Candidate]:
    """Return candidates with their voxel (z, y, x) on the scan's own grid, from their place in mm."""
    inverse = np.linalg.inv(source.affine)
    moved = []
    for c in candidates:
        at = inverse[:3, :3] @ np.array([c.x_mm, c.y_mm, c.z_mm]) + inverse[:3, 3]
        z, y, x = (int(np.floor(v + 0.5)) for v in at)
        moved.append(replace(c, voxel_z=z, voxel_y=y, voxel_x=x))
    return moved


def native_maps(found: Found, volume: Volume, source: SourceGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return (label map of every candidate, int32; scores of the lesions called, float32, 0 elsewhere), in the order of
    the file's own voxels.
    """
    scores = scored_map(found.labels, found.kept, "discriminator_score")
    labels, scored = (
        to_source(to_grid(part, found.prepared.affine, volume.shape, volume.affine, order=0), volume.affine, source)
        for part in (found.labels, scores)
    )
    return labels, scored


def _predicted(model: LesionDetector, series: Series, folder: Path, masks: Sequence[Path]) -> dict[str, Any]:
    """Return the ledger's line of one series, predicted or not."""
    code, reason, target = "", "", model.record.target
    candidates: list[Candidate] = []
    row = Prediction(series.patient, series.series, target, float("nan"), split=series.split)
    try:
        opened = series.open()
        volume, brain = volume_of(opened, model.record.prepare.modality), _brain_of(series, masks)
        found = model.find(volume, brain=brain, patient=series.patient, series=series.series, split=series.split)
        labels, scores = native_maps(found, volume, opened.source)
        dtype = np.uint8 if labels.max(initial=0) < 256 else np.uint16
        maps = ((LABELS, labels.astype(dtype)), (MASKS, (scores > 0).astype(np.uint8)), (SCORES, scores))
        for name, values in maps:
            write_nifti(folder / name / f"{series.series}.nii.gz", values, opened.source)
        candidates = native_candidates(found.candidates, opened.source)
        row = replace(row, probability=max((c.discriminator_score for c in found.kept), default=0.0))
    except Refusal as refused:
        code, reason = refused.code, refused.reason
    except FmctError as error:
        code, reason = "not-predicted", str(error)
    rows = [_plain(vars(replace(row, error=f"{code}: {reason}") if code else row))]
    return {
        "patient": series.patient, "series": series.series, "code": code, "reason": reason, "rows": rows,
        "candidates": [_plain(asdict(c)) for c in candidates],
    }  # fmt: skip


def _brain_of(series: Series, masks: Sequence[Path]) -> Volume | None:
    """Return a series' brain mask: the file whose name begins with the series', or lies as the scan lies."""
    scan = Path(series.path) if series.path else None
    for path in masks:
        stem = _stem(path.name)
        named = re.fullmatch(re.escape(series.series) + r"([_-].*)?", stem)
        placed = scan is not None and path.parent.name == scan.parent.name
        if named or (placed and re.fullmatch(re.escape(_stem(scan.name)) + r"([_-].*)?", stem)):  # type: ignore[union-attr]
            return read_mask(path)
    return None


def _mask_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of brain masks.")
    return sorted(path for path in folder.rglob("*") if path.name.lower().endswith((".nii", ".nii.gz")))


def _stem(name: str) -> str:
    return re.sub(r"\.(nii(\.gz)?|nrrd|mha|mhd|dcm)$", "", name, flags=re.IGNORECASE)


def _open_folder(folder: Path, model: LesionDetector) -> None:
    """Make `folder` this prediction's, or check that it is already. Raises ArtefactError."""
    record = {"model": model.fingerprint, "target": model.record.target, "lesion_sign": model.record.lesion_sign}
    if (folder / RECORD).is_file():
        there = read_json(folder / RECORD, *FORMAT)
        if there["model"] != record["model"]:
            raise ArtefactError(f"{folder}: holds predictions of another model; nothing was changed. Choose another.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtefactError(f"{folder}: exists and holds no predictions; nothing was written. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"connectivity": model.record.connectivity, "match": plain(model.record.match), "fmct": fmct.__version__}
    use = {"use": "research use only, not a medical device"}
    write_json(folder / RECORD, *FORMAT, {**record, **facts, **use})


def _read_ledger(folder: Path) -> dict[str, dict[str, Any]]:
    """Return {series: line} of those that an earlier run predicted; failures are tried again."""
    path, done = folder / LEDGER, {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # cut short by a kill
        done.pop(line["series"], None)
        if not line["code"]:
            done[line["series"]] = line
    return done


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}

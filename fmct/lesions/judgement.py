"""`fmct evaluate` for lesion detectors: a folder of predictions beside reference masks, stage by stage."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np

from fmct.artefacts import read_json
from fmct.errors import DataError
from fmct.lesions.candidates import read_candidates
from fmct.lesions.predict import FORMAT, LABELS, RECORD, SOURCES
from fmct.lesions.reporting import Case, report
from fmct.lesions.settings import EvaluateConfig
from fmct.shapes import triple_of_floats
from fmct.table_files import read_rows

_SAME_PLACE_MM = 0.05


def is_lesion_prediction(folder: Path) -> bool:
    """Return whether a folder holds predictions of a lesion detector."""
    return (folder / RECORD).is_file()


def judge_predictions(
    folder: str | Path, references: str | Path, out: str | Path, *, config: EvaluateConfig, title: str, seed: int = 0
) -> str:
    """Write OUT/report.html, table.md, results.json and candidates.csv, and return the tables as text.

    references: masks, named by series (SERIES.nii.gz or SERIES_….nii.gz), or lying as the scans lay (sources.csv): in
    a folder of the same name, called as the scan plus `_…`. A predicted series without one is not judged. Raises
    DataError when none has one, and for a mask on another grid.
    """
    folder, out = Path(folder), Path(out)
    record = read_json(folder / RECORD, *FORMAT)
    rows = read_rows(folder / "predictions.csv")
    failed = [row["series"] for row in rows if row["error"]]
    chosen = {row["series"]: row["patient"] for row in rows if not config.split or row["split"] == config.split}
    files = reference_files(folder, Path(references), list(chosen))
    candidates = read_candidates(folder / "candidates.csv")
    cases = []
    for series, path in files.items():
        own = [c for c in candidates if c.series == series]
        labels_file = folder / LABELS / f"{series}.nii.gz"
        lesions, spacing, affine = _read(path)
        if series in failed:
            labels = np.zeros(lesions.shape, dtype=np.int64)
        else:
            labels, _, placed = _read(labels_file)
            if labels.shape != lesions.shape or np.abs(placed - affine).max() > _SAME_PLACE_MM:
                raise DataError(f"{path}: lies on another grid than {labels_file}; bring it onto the scan's own grid.")
        cases.append(Case(chosen[series], series, lesions > 0, labels, own, spacing))
    out.mkdir(parents=True, exist_ok=True)
    text = report(out, cases, config, title=title, lesion_sign=record["lesion_sign"], seed=seed)
    if failed:
        text += f"\n{len(failed)} series could not be predicted; their lesions count as missed.\n"
    return text


def reference_files(folder: Path, references: Path, series: list[str]) -> dict[str, Path]:
    """Return {series: reference mask}. Raises DataError when no series has one, or one has two."""
    if not references.is_dir():
        raise DataError(
            f"{references}: expected a folder of reference masks; a table of labels tells no lesion's place."
        )
    masks = sorted(path for path in references.rglob("*") if path.name.lower().endswith((".nii", ".nii.gz")))
    sources = folder / SOURCES
    places = {row["series"]: Path(row["file"]) for row in read_rows(sources)} if sources.is_file() else {}
    found: dict[str, Path] = {}
    for name in series:
        scan = places.get(name)
        fitting = [mask for mask in masks if _names(mask, name) or (scan is not None and _lies_as(mask, scan))]
        if len(fitting) > 1:
            raise DataError(f"series {name}: two reference masks fit it, {fitting[0]} and {fitting[1]}. Keep one.")
        if fitting:
            found[name] = fitting[0]
    if not found:
        raise DataError(
            f"{references}: none of its {len(masks)} masks belongs to a predicted series. Name them by series, such as "
            f"{series[0] if series else 'SERIES'}.nii.gz, or lay them as the scans lie."
        )
    return found


def _names(mask: Path, series: str) -> bool:
    return re.fullmatch(re.escape(series) + r"([_-].*)?\.nii(\.gz)?", mask.name) is not None


def _lies_as(mask: Path, scan: Path) -> bool:
    stem = re.sub(r"\.(nii(\.gz)?|nrrd|mha|mhd|dcm)$", "", scan.name, flags=re.IGNORECASE)
    alike = re.fullmatch(re.escape(stem) + r"([_-].*)?\.nii(\.gz)?", mask.name) is not None
    return alike and mask.parent.name == scan.parent.name and mask.resolve() != scan.resolve()


def _read(path: Path) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
    """Return (labels (z, y, x) of the file's own order, spacing mm, affine zyx → RAS mm). Raises DataError."""
    try:
        image = nib.load(path)  # type: ignore[attr-defined]
        values = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
        affine = np.asarray(image.affine, dtype=np.float64)[:, [2, 1, 0, 3]]  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:  # type: ignore[attr-defined]
        raise DataError(f"{path}: not readable as a mask ({type(error).__name__}).") from None
    if values.ndim != 3 or not np.array_equal(values, np.rint(values)) or values.min() < 0:
        raise DataError(f"{path}: expected a mask of whole labels from 0 on, on three axes; got {values.shape}.")
    spacing = triple_of_floats(np.linalg.norm(affine[:3, :3], axis=0).tolist(), "spacing")
    return values.transpose(2, 1, 0).astype(np.int64), spacing, affine

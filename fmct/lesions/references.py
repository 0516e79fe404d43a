"""What predictions of a lesion detector are judged by: masks found by name or place, on the scan's own voxels."""

import re
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from fmct.errors import DataError
from fmct.lesions.predict import SOURCES
from fmct.shapes import triple_of_floats
from fmct.table_files import read_rows

_SAME_PLACE_MM = 0.05


def free_series(labels: Path, patients: Mapping[str, str], target: str) -> set[str]:
    """Return the series that a table says are free of lesions: 0 in the column of the target. Raises DataError.

    patients: {series: patient}; a row without a series is of all of its patient's.
    """
    rows = read_rows(labels)
    missing = [name for name in ("patient", target) if name not in rows[0]]
    if missing:
        raise DataError(f"{labels}: no column {', '.join(missing)}; found {', '.join(rows[0])}.")
    free, wrong = set(), []
    for line, row in enumerate(rows, start=2):
        if row[target] not in ("", "0", "1"):
            wrong.append(f"line {line} says {row[target]!r}")
        named = row.get("series", "")
        if row[target] == "0":
            free |= {s for s, patient in patients.items() if s == named or (not named and patient == row["patient"])}
    if wrong:
        raise DataError(f"{labels}: {target} is 0, 1 or empty; {', '.join(wrong[:4])}.")
    return free


def reference_files(folder: Path, references: Path, series: list[str], *, needed: bool = True) -> dict[str, Path]:
    """Return {series: mask of the folder}. Raises DataError when one has two, or (where `needed`) none has one."""
    if not references.is_dir():
        raise DataError(
            f"{references}: expected a folder of reference masks; a table of labels tells no lesion's place. Name them "
            "with --masks beside the table."
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
    if not found and needed:
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


def mask_on_scan(path: Path | None, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray | None:
    """Return a mask on the scan's grid, bool, or None without one. Raises DataError where its voxels are others.

    Its axes may run in another order or direction, and it may hold a part of the scan alone.
    """
    if path is None:
        return None
    values, _, placed = read_whole(path)
    matrix = np.linalg.solve(affine, placed)  # its voxel → the scan's
    whole = np.rint(matrix)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(values.shape) - 1)
    off = np.abs(corners @ (matrix - whole)[:3, :3].T + (matrix - whole)[:3, 3]).max(axis=0)
    turned = np.abs(whole[:3, :3]).sum(axis=0).tolist() == [1, 1, 1] == np.abs(whole[:3, :3]).sum(axis=1).tolist()
    if not turned or (off * np.linalg.norm(affine[:3, :3], axis=0)).max() > _SAME_PLACE_MM:
        raise DataError(f"{path}: lies on another grid than its scan; bring it onto the scan's own voxels.")
    index = np.argwhere(values > 0) @ whole[:3, :3].T + whole[:3, 3]
    if len(index) and ((index < 0) | (index >= shape)).any():
        raise DataError(f"{path}: reaches outside its scan; is it another series'?")
    out = np.zeros(shape, dtype=bool)
    out[tuple(index.astype(int).T)] = True
    return out


def read_whole(path: Path) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
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

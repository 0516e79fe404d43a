"""Lesion masks: which mask file belongs to which series, and a mask on another grid."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from fmct import pyramid
from fmct.errors import DataError
from fmct.io.masks import read_mask
from fmct.store.manifest import Entry
from fmct.store.reader import Store
from fmct.volume import Volume

__all__ = ["mask_on_grid", "match_masks", "read_mask", "sources_path"]

_SUFFIX = re.compile(r"(\.nii(\.gz)?|\.nrrd|\.mha|\.mhd|\.dcm)$", re.IGNORECASE)
_MASKS = ("*.nii", "*.nii.gz", "*.dcm")


def match_masks(
    store: Store, folder: str | Path, *, entries: Sequence[Entry] | None = None, table: str | Path | None = None
) -> dict[str, Path]:
    """Return {entry id: mask file} for the series of a store that have a mask in `folder`.

    A mask belongs to a series when (1) `table`, a CSV with the columns mask and id, patient or file, says so, or
    (2) its name begins with the series' id, or with its patient's when that patient has one series, or (3) it lies as
    the scan lay when it was ingested (STORE.sources.csv, beside the store): in a folder of the same name, called as
    the scan or as the scan plus `_` or `-` and more, such as STS_001/ct_gtv.nii.gz for STS_001/ct.nii.gz.
    Raises DataError when a series would get two masks, or none gets one.
    """
    folder, entries = Path(folder), store.entries if entries is None else entries
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of masks.")
    files = sorted({path for pattern in _MASKS for path in folder.rglob(pattern)})
    if table is not None:
        found = _by_table(Path(table), folder, entries, _sources(store))
    else:
        found = _by_name(files, entries)
        left = [entry for entry in entries if entry.id not in found]
        found |= _by_layout(files, left, _sources(store))
    if not found:
        raise DataError(
            f"{folder}: none of its {len(files)} files could be matched to a series of {store.path}. Name a mask "
            f"by the series' id (such as {entries[0].id if entries else 'ID'}.nii.gz), keep the layout of the ingested "
            f"folder and {sources_path(store).name} beside the store, or give a CSV with the columns id and mask."
        )
    return found


def mask_on_grid(mask: Volume, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Return the lesion's share (0..1, float32) of each voxel of a grid of `shape` and (4, 4) `affine` zyx → RAS mm.

    A mask finer than the grid is averaged down first; then linear in world coordinates. Outside the mask it is 0.
    """
    wanted = np.linalg.norm(affine[:3, :3], axis=0)
    levels = pyramid.build(mask.voxels, mask.spacing.tolist())
    factor, voxels = levels[pyramid.choose_level(mask.spacing.tolist(), [f for f, _ in levels], wanted.tolist())]
    to_level0 = np.linalg.solve(mask.affine, affine)
    # scipy takes a homogeneous matrix: grid index → index of the mask's level.
    matrix = np.eye(4)
    matrix[:3, :3] = to_level0[:3, :3] / np.asarray(factor, dtype=np.float64)[:, None]
    matrix[:3, 3] = pyramid.level_index(to_level0[:3, 3], factor)
    z, y, x = (int(n) for n in shape)
    return ndimage.affine_transform(voxels, matrix, output_shape=(z, y, x), order=1, mode="constant", cval=0.0)


def sources_path(store: Store) -> Path:
    """Return where the table of what was ingested as which series lies: beside the store."""
    return store.path.with_name(store.path.name + ".sources.csv")


def _sources(store: Store) -> dict[str, Path]:
    """Return {entry id: path as ingested} of STORE.sources.csv, {} where it is absent."""
    path = sources_path(store)
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["id"]: Path(row["file"]) for row in csv.DictReader(file) if row.get("file")}


def _by_table(path: Path, folder: Path, entries: Sequence[Entry], sources: Mapping[str, Path]) -> dict[str, Path]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    keys = [key for key in ("id", "patient", "file") if rows and key in rows[0]]
    if not rows or "mask" not in rows[0] or not keys:
        raise DataError(f"{path}: expected a CSV with the column mask and one of id, patient, file.")
    found: dict[str, Path] = {}
    for number, row in enumerate(rows, start=2):
        chosen = [entry for entry in entries if _row_means(row, keys, entry, sources)]
        if len(chosen) > 1:
            raise DataError(f"{path}: line {number} means {len(chosen)} series of the store; name one by its id.")
        if chosen and row["mask"]:
            mask = folder / row["mask"]
            if not mask.is_file():
                raise DataError(f"{path}: line {number}: no mask at {mask}.")
            _add(found, chosen[0].id, mask)
    return found


def _row_means(row: Mapping[str, str], keys: Sequence[str], entry: Entry, sources: Mapping[str, Path]) -> bool:
    named = {"id": entry.id, "patient": entry.patient, "file": str(sources.get(entry.id, ""))}
    given = [(key, row[key]) for key in keys if row[key]]
    return bool(given) and all(
        named[key] == value or (key == "file" and named[key].endswith("/" + value)) for key, value in given
    )


def _by_name(files: Sequence[Path], entries: Sequence[Entry]) -> dict[str, Path]:
    owners: dict[str, list[str]] = {}
    for entry in entries:
        owners.setdefault(entry.patient, []).append(entry.id)
    names = {entry.id: entry.id for entry in entries}
    names |= {patient: ids[0] for patient, ids in owners.items() if len(ids) == 1}
    found: dict[str, Path] = {}
    for path in files:
        stem = _SUFFIX.sub("", path.name)
        for name in (stem, re.split(r"[_-]", stem)[0], path.parent.name):
            if name in names:
                _add(found, names[name], path)
                break
    return found


def _by_layout(files: Sequence[Path], entries: Sequence[Entry], sources: Mapping[str, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in entries:
        scan = sources.get(entry.id)
        if scan is None:
            continue
        # A DICOM series is known by its folder. A mask of exactly the scan's name is one in a mirrored tree; in the
        # scans' own tree it is the scan.
        place = scan if re.search(r"\.(nii(\.gz)?|nrrd|mha|mhd)$", scan.name, re.IGNORECASE) else scan.parent
        pattern = re.compile(re.escape(_SUFFIX.sub("", place.name)) + r"([_-].*)?")
        for path in files:
            alike = path.parent.name == place.parent.name and pattern.fullmatch(_SUFFIX.sub("", path.name))
            if alike and path.resolve() != scan.resolve():
                _add(found, entry.id, path)
    shared = {path for path in found.values() if list(found.values()).count(path) > 1}
    if shared:
        raise DataError(
            f"{min(shared)}: lies as several series of the store did. Say which in a CSV with the columns id and mask."
        )
    return found


def _add(found: dict[str, Path], name: str, path: Path) -> None:
    if name in found and found[name] != path:
        raise DataError(
            f"series {name} would get two masks, {found[name]} and {path}. Merge them, move one away, or name the "
            "right one in a CSV with the columns id and mask."
        )
    found[name] = path

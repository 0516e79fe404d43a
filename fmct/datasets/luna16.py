"""LUNA16: lung nodules as points with diameters, findings that count neither way, and candidates, as shipped.

Scans are `subset0 … subset9/<series UID>.mhd`; tables name a series and a place in the world of its MHD file, in mm,
x to the left and y to the back (LPS). fmct's world is RAS, so x and y change sign. A nodule becomes a ball of its
diameter on the scan's own grid; so does a finding to be ignored.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from fmct.datasets.luna16_lungs import lungs_folder, write_lungs
from fmct.datasets.stored_scans import StoredScan, stored_scans
from fmct.errors import ConfigError, DataError
from fmct.store.manifest import Entry
from fmct.table_files import read_rows, write_rows

ANNOTATIONS, EXCLUDED = "annotations.csv", "annotations_excluded.csv"
CANDIDATES = ("candidates_V2.csv", "candidates.csv")  # the second version is the one that the challenge scored
SPLITS = {"validation": "subset8", "test": "subset9"}
UNKNOWN_DIAMETER_MM = 10.0  # what the challenge's own evaluation takes where a diameter is negative
_SUBSET = re.compile(r"^subset\d$")
_PLACE = ("coordX", "coordY", "coordZ")
_POINTS = ("patient", "series", "x_mm", "y_mm", "z_mm")


@dataclass(frozen=True)
class Finding:
    """A point of a table. centre_mm: RAS world (x, y, z). diameter_mm: None for a candidate. nodule: what it is."""

    series: str
    centre_mm: tuple[float, float, float]
    diameter_mm: float | None
    nodule: bool
    line: int


Findings = Mapping[str, Sequence[Finding]]


def read_annotations(path: str | Path, *, nodule: bool = True) -> Findings:
    """Return {series UID: its findings} of annotations.csv, or with nodule False of annotations_excluded.csv.

    A diameter that is negative there is unknown and counts as 10 mm, as in the challenge's evaluation. Raises DataError
    for a missing column, a number that is none, and a nodule without a positive diameter.
    """
    found = _read(path, "diameter_mm")
    result: dict[str, list[Finding]] = defaultdict(list)
    for uid, centre, diameter, line in found:
        if diameter <= 0 and nodule:
            raise DataError(f"{path}: line {line}: a nodule has a diameter of {diameter:g} mm; expected more than 0.")
        result[uid].append(Finding(uid, centre, diameter if diameter > 0 else UNKNOWN_DIAMETER_MM, nodule, line))
    return result


def read_candidates(path: str | Path) -> Findings:
    """Return {series UID: its candidates} of candidates.csv or candidates_V2.csv; class 1 is a nodule, 0 is none."""
    result: dict[str, list[Finding]] = defaultdict(list)
    for uid, centre, kind, line in _read(path, "class"):
        if kind not in (0.0, 1.0):
            raise DataError(f"{path}: line {line}: class is {kind:g}; expected 0 or 1.")
        result[uid].append(Finding(uid, centre, None, kind == 1.0, line))
    return result


def series_uid(scan: StoredScan) -> str:
    """Return the series UID of a scan: the MHD file's name, or the DICOM header's where the scan came from there."""
    return scan.uids.get("SeriesInstanceUID") or Path(scan.found.name).name.rsplit(".", 1)[0]


def subset_of(scan: StoredScan) -> str:
    """Return the published subset (subset0 … subset9) whose folder a scan lay in, "" for none."""
    return next((part for part in reversed(Path(scan.found.path).parts) if _SUBSET.match(part)), "")


def balls(entry: Entry, findings: Iterable[Finding]) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return (first voxel, uint8 box) of the series' voxels whose centres lie in one of the findings' balls.

    The voxel nearest to a centre is in it, however thick the slices. Raises DataError for a centre outside the scan:
    its world is another one, as when x and y were not turned round.
    """
    affine, spacing = np.array(entry.affine), np.asarray(entry.spacing_mm)
    shape = np.asarray(entry.shape)
    places = []
    for finding in findings:
        centre = np.linalg.solve(affine[:3, :3], np.asarray(finding.centre_mm) - affine[:3, 3])
        if (centre < -0.5).any() or (centre > shape - 0.5).any():
            raise DataError(
                f"series {finding.series}, line {finding.line}: its centre {np.round(finding.centre_mm, 1).tolist()} "
                f"mm (RAS) is voxel {np.round(centre, 1).tolist()} (z, y, x) of a scan of {tuple(entry.shape)}: "
                "outside. Is this the table of this scan, in LPS as LUNA16 ships it?"
            )
        places.append((centre, (finding.diameter_mm or 0.0) / 2))
    if not places:
        return (0, 0, 0), np.zeros((0, 0, 0), np.uint8)
    reaches = [np.ceil(radius / spacing).astype(int) + 1 for _, radius in places]
    lows = [np.maximum(np.rint(c).astype(int) - r, 0) for (c, _), r in zip(places, reaches, strict=True)]
    highs = [np.minimum(np.rint(c).astype(int) + r + 1, shape) for (c, _), r in zip(places, reaches, strict=True)]
    start, stop = np.min(lows, axis=0), np.max(highs, axis=0)
    box = np.zeros(stop - start, dtype=np.uint8)
    for (centre, radius), low, high in zip(places, lows, highs, strict=True):
        part = box[tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))]
        steps = np.indices(part.shape).transpose(1, 2, 3, 0) + low - centre
        part[((steps * spacing) ** 2).sum(axis=-1) <= radius**2] = 1
        box[tuple(np.clip(np.rint(centre).astype(int), 0, shape - 1) - start)] = 1
    return (int(start[0]), int(start[1]), int(start[2])), box


def write_cohort(
    labels: str | Path,
    source: str | Path,
    store: str | Path,
    out: str | Path,
    *,
    key_file: str | Path = "",
    splits: Mapping[str, str] | None = None,
) -> list[str]:
    """Write what fine-tuning reads of LUNA16 into the folder `out`, and return what to tell the user.

    labels: the folder of the shipped tables, or its annotations.csv. source, store: what was ingested, and where to.
    splits: {validation or test: subset}; every other scan is train. `out` gets labels.csv (patient, series, nodule,
    split, subset), nodules.csv and candidates.csv (points in RAS mm), masks/ and ignore/ (one NIfTI a series that has
    any), and lungs/ where seg-lungs-LUNA16 lies in or beside the tables or the scans. Raises DataError when a table is
    not what LUNA16 ships, or none of its series is in the store.
    """
    chosen = _checked_splits(SPLITS if splits is None else splits)
    folder = Path(labels) if Path(labels).is_dir() else Path(labels).parent
    annotations = folder / ANNOTATIONS if Path(labels).is_dir() else Path(labels)
    nodules = read_annotations(annotations)
    excluded = read_annotations(folder / EXCLUDED, nodule=False) if (folder / EXCLUDED).is_file() else {}
    named = next((folder / name for name in CANDIDATES if (folder / name).is_file()), None)
    candidates = read_candidates(named) if named else {}
    scans = list(stored_scans(source, store, key_file=key_file))
    known = {series_uid(scan) for scan in scans}
    if nodules and not known & set(nodules):
        raise DataError(
            f"{annotations}: none of its {len(nodules)} series is in {store}: expected scans called <series UID>.mhd."
        )
    folder = Path(out)
    written = {
        "masks": sum(_write_balls(folder / "masks", scan.entry, nodules.get(series_uid(scan), ())) for scan in scans),
        "ignore": sum(
            _write_balls(folder / "ignore", scan.entry, excluded.get(series_uid(scan), ())) for scan in scans
        ),
    }
    rows = [_label_row(scan, nodules, chosen) for scan in scans]
    write_rows(folder / "labels.csv", ("patient", "series", "nodule", "split", "subset"), rows)
    _write_points(folder / "nodules.csv", scans, nodules, "diameter_mm")
    if candidates:
        _write_points(folder / "candidates.csv", scans, candidates, "nodule")
    lungs = lungs_folder(annotations.parent, Path(source))
    held = write_lungs(folder / "lungs", lungs, ((series_uid(s), s.entry.id) for s in scans)) if lungs else 0
    counts = ", ".join(f"{n} {[row['split'] for row in rows].count(n)}" for n in ("train", *chosen))
    away = len(set(nodules) - known)
    return [
        f"{folder / 'labels.csv'}: {len(rows)} series ({counts}), {written['masks']} with nodules, {written['ignore']} "
        "with regions to ignore.",
        *([f"{folder / 'lungs'}: {held} series with a mask of the lungs."] if lungs else []),
        *([f"{away} series of {annotations} are not in the store."] if away else []),
    ]


def _read(path: str | Path, column: str) -> Iterable[tuple[str, tuple[float, float, float], float, int]]:
    """Yield (series UID, RAS centre, number in `column`, line) of a table."""
    rows = read_rows(path)
    missing = [name for name in ("seriesuid", *_PLACE, column) if name not in rows[0]]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(rows[0])}. Expected LUNA16's, as shipped."
        )
    for line, row in enumerate(rows, start=2):
        try:
            x, y, z, value = (float(row[name]) for name in (*_PLACE, column))
        except ValueError:
            raise DataError(
                f"{path}: line {line}: {','.join(row.values())[:80]} holds a number that is none."
            ) from None
        if not np.isfinite([x, y, z, value]).all():
            raise DataError(f"{path}: line {line}: a coordinate or {column} is not finite.")
        yield row["seriesuid"].strip(), (-x, -y, z), value, line


def _checked_splits(splits: Mapping[str, str]) -> Mapping[str, str]:
    wrong = [f"{name}={subset}" for name, subset in splits.items() if not _SUBSET.match(subset)]
    if wrong or len(set(splits.values())) < len(splits):
        raise ConfigError(f"--split {', '.join(wrong) or splits}: expected one subset each, such as test=subset9.")
    return splits


def _label_row(scan: StoredScan, nodules: Findings, splits: Mapping[str, str]) -> dict[str, object]:
    subset = subset_of(scan)
    return {
        "patient": scan.entry.patient,
        "series": scan.entry.id,
        "nodule": int(bool(nodules.get(series_uid(scan)))),
        "split": next((name for name, held in splits.items() if held == subset), "train"),
        "subset": subset,
    }


def _write_balls(folder: Path, entry: Entry, findings: Sequence[Finding]) -> bool:
    """Write the smallest NIfTI mask that holds the findings' balls, on the series' voxels; return whether any."""
    if not findings:
        return False
    start, box = balls(entry, findings)
    affine = np.array(entry.affine)
    affine[:3, 3] += affine[:3, :3] @ np.asarray(start)
    image = nib.Nifti1Image(np.ascontiguousarray(box.transpose(2, 1, 0)), affine[:, [2, 1, 0, 3]])
    image.header.set_xyzt_units("mm")
    folder.mkdir(parents=True, exist_ok=True)
    image.to_filename(folder / f"{entry.id}.nii.gz")
    return True


def _write_points(path: Path, scans: Sequence[StoredScan], findings: Findings, column: str) -> None:
    rows = []
    for scan in scans:
        for finding in findings.get(series_uid(scan), ()):
            place = dict(zip(_POINTS[2:], finding.centre_mm, strict=True))
            value = finding.diameter_mm if column == "diameter_mm" else int(finding.nodule)
            rows.append({"patient": scan.entry.patient, "series": scan.entry.id, **place, column: value})
    write_rows(path, (*_POINTS, column), rows)

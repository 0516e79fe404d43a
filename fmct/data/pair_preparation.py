"""Brings paired scans onto their scans' grids, measures how well, and writes a folder that is ready for `fmct ingest`.

  python -m fmct.data.pair_preparation TABLE OUT [--root FOLDER] [--method rigid+bspline] [--paired-modality PT]

TABLE is a pairs table (fmct.data.pair_table) whose scans and masks are files. OUT gets scans/, masks/, pairs.csv with
what was measured, and patients.csv for `fmct ingest OUT/scans STORE patients=OUT/patients.csv`. The same command again
does only what is missing. A pair that fails costs nothing but itself: its scan is written all the same.
"""

import argparse
import hashlib
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from fmct.artefacts import read_json, write_json
from fmct.data.mask_files import mask_on_grid
from fmct.data.pair_table import PairRow, read_pair_table, write_pair_table
from fmct.errors import DataError, told_to_the_user
from fmct.io import read_volume
from fmct.io.masks import MaskGrid, read_mask
from fmct.registration.pair_quality import DROP, PairPolicy, PairQuality, judge, measure
from fmct.registration.register import METHODS, Registered, RegistrationConfig, register
from fmct.registration.warping import warp_mask
from fmct.table_files import write_rows
from fmct.volume import Volume

log = logging.getLogger(__name__)
RECORD_FORMAT = ("fmct-prepared-pair", "1.0")


@dataclass(frozen=True)
class PreparationConfig:
    """How pairs are prepared.

    root: folder that the table's paths are relative to (empty: the table's own). method: for rows whose column
    registration is empty. paired_modality: of the paired files, CT, PT or MR. annotated masks are carried over `by`
    probability or distance (fmct.registration.warping.warp_mask).
    """

    root: str = ""
    method: str = "rigid+bspline"
    paired_modality: str = "CT"
    by: str = "probability"
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    policy: PairPolicy = field(default_factory=PairPolicy)


def prepare_pairs(
    table: str | Path, out: str | Path, config: PreparationConfig | None = None
) -> list[dict[str, object]]:
    """Write the scans, paired scans and masks of a table into `out` and return the rows of its pairs.csv.

    What is wrong with a pair alone (the paired scan, registration, quality, interval) drops the pair, is logged with
    the patient, and stands in the row. A row whose scan or mask cannot be read goes to refused.csv, and the others go
    on. Raises DataError for a faulty table, a file that does not exist, and when no scan could be prepared.
    """
    config, table, out = config or PreparationConfig(), Path(table), Path(out)
    root = Path(config.root) if config.root else table.parent
    names: dict[str, int] = {}
    rows: list[dict[str, object]] = []
    refused: list[dict[str, object]] = []
    for row in read_pair_table(table, policy=config.policy):
        name = _folder_name(row, names)
        record, key = out / "records" / f"{name}.json", _key(row, root, config)
        known = read_json(record, *RECORD_FORMAT) if record.is_file() else {}
        if known.get("key") != key:
            try:
                known = {"key": key, "row": _prepare(row, name, root, out, config)}
            except DataError as error:
                log.warning("patient %s: not prepared: %s", row.name, error)
                refused.append({"patient": row.name, "nct": row.nct, "reason": str(error)})
                continue
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, *RECORD_FORMAT, known)
        rows.append(known["row"])
    if refused:
        write_rows(out / "refused.csv", ["patient", "nct", "reason"], refused)
    if not rows:
        raise DataError(f"{table}: none of its {len(refused)} scans could be prepared: {refused[0]['reason']}")
    write_pair_table(out / "pairs.csv", rows)
    files = [
        {"file": row[column], "patient": row["patient"]} for row in rows for column in ("nct", "ctpa") if row[column]
    ]
    write_rows(out / "patients.csv", ["file", "patient"], files)
    return rows


def write_volume(path: str | Path, volume: Volume, *, title: str = "") -> None:
    """Write a volume as NIfTI (.nii.gz): int16 as it is, masks as uint8, else float32; title: 80 characters at most."""
    voxels = volume.voxels.astype(np.uint8) if volume.modality == "mask" else volume.voxels
    image = nib.Nifti1Image(np.ascontiguousarray(voxels.T), volume.affine[:, [2, 1, 0, 3]])  # type: ignore[attr-defined]
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = title.encode()[:79]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)  # type: ignore[attr-defined]


def _prepare(row: PairRow, name: str, root: Path, out: Path, config: PreparationConfig) -> dict[str, object]:
    """Write the files of one row and return its row of the table."""
    fixed = read_volume(root / row.nct)
    method = row.registration or config.method
    found, quality, drawn_on = None, row.quality, MaskGrid(fixed.shape, fixed.affine)
    if row.ctpa:
        try:
            moving = read_volume(root / row.ctpa, modality=config.paired_modality)
        except DataError as error:
            quality = replace(quality, failure=f"the paired scan {row.ctpa} was not read: {error}")
        else:
            found, quality = _registered(row, moving, fixed, method, root, config)
            drawn_on = MaskGrid(moving.shape, moving.affine) if row.mask_is_inherited else drawn_on
    verdict = judge(quality, config.policy)
    if row.ctpa and verdict.decision == DROP:
        fell = (
            ", and with it the mask drawn on it" if row.mask and row.mask_is_inherited and not verdict.aligned else ""
        )
        log.warning("patient %s: pair dropped%s: %s", row.name, fell, "; ".join(verdict.reasons))
    write_volume(out / "scans" / name / "nct.nii.gz", fixed)
    if found is not None:
        write_volume(out / "scans" / name / "paired.nii.gz", found.warped)
    carried = not row.ctpa or verdict.aligned or not row.mask_is_inherited
    mask = _mask(row, drawn_on, fixed, found, root, config) if row.mask and carried else None
    if mask is not None:
        write_volume(out / "masks" / name / "nct_mask.nii.gz", mask)
    measured = {key: value for key, value in quality.facts().items() if key != "same_examination"}
    return {
        "patient": row.name,
        "nct": f"{name}/nct.nii.gz",
        "ctpa": f"{name}/paired.nii.gz" if found is not None else "",
        "mask": f"{name}/nct_mask.nii.gz" if mask is not None else "",
        "annotated": row.annotated if mask is not None and (found is not None or row.annotated == "nct") else "",
        "label": row.label,
        "registration": method if row.ctpa else "",
        "pair_weight": row.pair_weight,
        "split": row.split,
        **measured,
        "decision": verdict.decision if row.ctpa else "",
        "reasons": "; ".join(verdict.reasons) if row.ctpa else "",
    }


def _registered(
    row: PairRow, moving: Volume, fixed: Volume, method: str, root: Path, config: PreparationConfig
) -> tuple[Registered | None, PairQuality]:
    """Return (paired scan on the fixed grid, its quality); None and the failure where registration gave nothing."""
    identical = moving.shape == fixed.shape and np.array_equal(moving.voxels, fixed.voxels)
    stated = replace(row.quality, same_examination=method == "identity", identical=identical or row.quality.identical)
    if row.heart:
        stated = replace(stated, heart_hu=_enhancement(read_mask(root / row.heart), moving, row.name))
    given = root / row.transform if method == "given" and row.transform else None
    try:
        found = register(moving, fixed, method=method, given=given, config=config.registration)
    except DataError as error:
        return None, replace(stated, failure=str(error))
    measured = measure(fixed, found.warped, valid=found.valid, field_mm=found.field_mm)
    # What the table states is believed before what is measured here: it may come from better masks.
    merged = {key: value for key, value in asdict(stated).items() if value is not None}
    return found, PairQuality(**{**asdict(measured), **merged})


def _enhancement(heart: Volume, paired: Volume, patient: str) -> float:
    """Return the median HU of the paired scan in the heart or pulmonary trunk, a mask in the paired scan's world."""
    inside = mask_on_grid(heart, paired.shape, paired.affine) >= 0.5
    if not inside.any():
        raise DataError(f"patient {patient}: the heart's mask has no voxel inside the paired scan.")
    return float(np.median(paired.voxels[inside]))


def _mask(
    row: PairRow, drawn_on: MaskGrid, fixed: Volume, found: Registered | None, root: Path, config: PreparationConfig
) -> Volume:
    """Return a row's mask on the fixed grid, carried through the deformation when it was drawn on the paired scan."""
    mask = read_mask(root / row.mask, grid=drawn_on)
    field_mm = found.field_mm if found is not None and row.mask_is_inherited else None
    return warp_mask(mask, fixed, field_mm, by=config.by)


def _folder_name(row: PairRow, names: dict[str, int]) -> str:
    """Return a name for a row's folder: its patient in plain characters, numbered from the second row on."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", row.patient or Path(row.nct).name.split(".")[0]).strip("._") or "scan"
    names[plain] = names.get(plain, 0) + 1
    return plain if names[plain] == 1 else f"{plain}-{names[plain]}"


def _key(row: PairRow, root: Path, config: PreparationConfig) -> str:
    """Return what a prepared row depends on: the row but its line, the settings, its files' sizes and times."""
    stamps = []
    for name in (row.nct, row.ctpa, row.mask, row.heart, row.transform):
        if name:
            path = root / name
            if not path.exists():
                raise DataError(f"line {row.line}: no file {path}. Paths are relative to the table, or to --root.")
            stamps.append((name, path.stat().st_size, path.stat().st_mtime_ns))
    return hashlib.sha256(repr((replace(row, line=0), config, stamps)).encode()).hexdigest()


@told_to_the_user
def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the pairs of a table as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fmct.data.pair_preparation", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("table")
    parser.add_argument("out")
    parser.add_argument("--root", default="", help="folder that the table's paths are relative to")
    parser.add_argument("--method", default="rigid+bspline", choices=METHODS)
    parser.add_argument("--paired-modality", default="CT", choices=("CT", "PT", "MR"))
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    config = PreparationConfig(
        root=chosen.root,
        method=chosen.method,
        paired_modality=chosen.paired_modality,
        registration=RegistrationConfig(threads=chosen.threads),
    )
    rows = prepare_pairs(chosen.table, chosen.out, config)
    counts = {word: sum(row["decision"] == word for row in rows) for word in ("accept", "down-weight", "drop")}
    told = ", ".join(f"{word}: {count}" for word, count in counts.items())
    print(
        f"{chosen.out}: {len(rows)} scans; pairs: {told}. Next: fmct ingest {chosen.out}/scans STORE "
        f"patients={chosen.out}/patients.csv"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

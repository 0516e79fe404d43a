"""The soft-tissue-sarcoma set as an experiment's data: CT with the tumour's mask, PET as the paired scan, five folds.

The crops were cut 50 mm around the tumour, so that a crop's shape tells where the tumour is. The control is therefore
the ellipsoid inscribed in the crop minus 50 mm on each side, and scores are taken on windows that do not show the crop.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from fmct.artefacts import write_text
from fmct.data.store_names import StoreNames
from fmct.errors import DataError
from fmct.store.ingest import IngestConfig, ingest
from fmct.store.progress import Reporter
from fmct.store.reader import Store

CT, PET, MASK = "ct.nii.gz", "pet_suv.nii.gz", "ct_gtv.nii.gz"
MARGIN_MM = 50.0
FOLDS = 5
PATIENTS = r"(STS_\d+)"


@dataclass(frozen=True)
class PetCt:
    """Where the prepared data lies. patients: names in order. ellipsoids: folder of the control's masks."""

    store: Path
    masks: Path
    pairs: Path
    ellipsoids: Path
    patients: tuple[str, ...]


def patients_of(data: Path) -> tuple[str, ...]:
    """Return the names of the patients in `data`, which holds STS_NNN/ct.nii.gz, pet_suv.nii.gz and ct_gtv.nii.gz.

    Raises DataError when there are fewer than FOLDS such folders, or one lacks a file.
    """
    patients = tuple(sorted(path.parent.name for path in data.glob(f"STS_*/{CT}")))
    if len(patients) < FOLDS:
        raise DataError(f"{data}: expected folders STS_NNN with {CT}, {PET} and {MASK}; found {len(patients)}.")
    files = [data / patient / name for name in (CT, PET, MASK) for patient in patients]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise DataError(f"{data}: {len(missing)} files are missing, such as {missing[0]}.")
    return patients


def prepare_pet_ct(data: Path, folder: Path, *, progress: Reporter | None = None) -> PetCt:
    """Ingest every patient's CT and PET into FOLDER/store, write the pairs table and the control's masks.

    data: as `patients_of` takes it. What is there is kept.
    """
    patients = patients_of(data)
    config = IngestConfig(
        modality=["CT", "PT"], patient_regex=PATIENTS, read={"modality_patterns": {f"*{PET}": "PT", f"*{CT}": "CT"}}
    )
    ingest([data], folder / "store", config=config, progress=progress)  # from here on, a path names its patient
    rows = [[str(data / p / CT), str(data / p / PET), "nct", "identity"] for p in patients]
    _write(folder / "pairs.csv", ["nct", "ctpa", "annotated", "registration"], rows)
    ellipsoids = folder / "ellipsoids"
    for patient in patients:
        target = ellipsoids / patient / MASK
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_ellipsoid(data / patient / CT, target)
    return PetCt(folder / "store", data, folder / "pairs.csv", ellipsoids, patients)


def fold_of(patients: Sequence[str], patient: str) -> int:
    """Return the fold that tests a patient: its place in the sorted list, modulo FOLDS."""
    return sorted(patients).index(patient) % FOLDS


def patients_by_fold(patients: Sequence[str]) -> dict[int, list[str]]:
    """Return {fold: the patients that it tests}."""
    return {fold: [name for name in sorted(patients) if fold_of(patients, name) == fold] for fold in range(FOLDS)}


def training_patients(patients: Sequence[str], fold: int, *, count: int, seed: int) -> list[str]:
    """Return `count` patients (0: all) of a fold's training part, nested: a smaller draw is in every larger one."""
    rest = [patient for patient in sorted(patients) if fold_of(patients, patient) != fold]
    if count > len(rest):
        raise DataError(f"size {count}: a fold has {len(rest)} training patients.")
    order = np.random.default_rng([seed, fold]).permutation(len(rest))
    return sorted(rest[number] for number in order[: count or len(rest)])


def write_fold(path: Path, patients: Sequence[str], fold: int, *, count: int, seed: int) -> None:
    """Write a splits table: the fold's patients are `test`, those drawn are `train`, the others `left-out`."""
    drawn = set(training_patients(patients, fold, count=count, seed=seed))
    rows = [[p, "test" if fold_of(patients, p) == fold else "train" if p in drawn else "left-out"] for p in patients]
    _write(path, ["patient", "split"], rows)


def pseudonyms(store: Store, patients: Sequence[str]) -> dict[str, str]:
    """Return {pseudonym: name} of patients. Raises DataError for one that the store does not have."""
    names = StoreNames(store)
    found = {names.patient(patient): patient for patient in patients}
    if None in found:
        raise DataError(f"{store.path}: has no patient {found[None]}.")
    return {str(pseudonym): patient for pseudonym, patient in found.items()}


def inscribed_ellipsoid(shape: Sequence[int], spacing_mm: Sequence[float], margin_mm: float = MARGIN_MM) -> np.ndarray:
    """Return the (D, H, W) bool ellipsoid inscribed in a box of voxels minus `margin_mm` on every side.

    An axis too short for the margin keeps half a voxel of radius.
    """
    sides = np.asarray(shape) * np.asarray(spacing_mm)
    radii = np.maximum(sides / 2 - margin_mm, np.asarray(spacing_mm) / 2)
    grids = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.asarray(
        sum(
            ((grid + 0.5) * step - side / 2) ** 2 / radius**2
            for grid, step, side, radius in zip(grids, spacing_mm, sides, radii, strict=True)
        )
        <= 1
    )


def _write_ellipsoid(scan: Path, target: Path) -> None:
    image = nib.load(scan)  # type: ignore[attr-defined]
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)  # type: ignore[attr-defined]
    mask = inscribed_ellipsoid(image.shape, spacing.tolist()).astype(np.uint8)  # type: ignore[attr-defined]
    nib.save(nib.Nifti1Image(mask, image.affine), target)  # type: ignore[attr-defined]


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    write_text(path, text.getvalue())

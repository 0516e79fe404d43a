"""A tiny store with lesions: scans of a flat body, masks, tables; and what a reader of it must find again."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from fmct.data.cohort import CohortConfig
from fmct.phantoms.body import axial_affine
from fmct.preprocess import InputSpec, Preprocessing
from fmct.shapes import Triple, TripleF
from fmct.store.ingest import IngestConfig, ingest
from fmct.store.reader import Store
from fmct.windows import Window

SHAPE: Triple = (24, 28, 32)
SPACING: TripleF = (3.0, 2.0, 2.0)
LESION_HU = 300
PATIENTS = ("P1", "P2", "P3", "P4", "P5", "P6")
POSITIVE = ("P1", "P2", "P5")
SPLITS = {"P1": "train", "P2": "train", "P3": "train", "P4": "train", "P5": "test", "P6": "test"}


@dataclass(frozen=True)
class LabelledStore:
    """Where everything lies. Positive patients P1, P2 (train) and P5 (test) have masks; the others have none."""

    root: Path
    store: Path
    masks: Path
    labels: Path
    splits: Path

    @property
    def config(self) -> CohortConfig:
        """The cohort as it should be read."""
        return CohortConfig(
            store=str(self.store),
            labels=str(self.labels),
            targets=["pe"],
            masks=str(self.masks),
            splits=str(self.splits),
        )

    def entry(self, patient: str) -> Any:
        """Return the entry of a patient's CT."""
        with open(self.store.parent / "store.sources.csv", newline="", encoding="utf-8") as file:
            ids = {row["id"] for row in csv.DictReader(file) if f"/{patient}/ct" in row["file"]}
        return next(entry for entry in Store.open(self.store).entries if entry.id in ids)


def preprocessing(
    size: Triple = (8, 12, 12), spacing: TripleF | None = (3.0, 2.0, 2.0), **changes: Any
) -> Preprocessing:
    """Return an encoder's preprocessing whose one channel is HU / 1000."""
    spec = InputSpec(mode="tiles", size_voxels=size, spacing_mm=spacing, foreground_above=-500.0)
    return Preprocessing((Window(-1000.0, 1000.0, shift=0.0, scale=1000.0),), spec)


def scan(number: int) -> np.ndarray:
    """Return a body of 40 HU and some texture in air, (z, y, x) int16."""
    voxels = np.full(SHAPE, -1000, dtype=np.int16)
    texture = np.random.default_rng(number).integers(-30, 30, (18, 22, 26))
    voxels[3:21, 3:25, 3:29] = 40 + texture
    return voxels


def lesion(number: int) -> np.ndarray:
    """Return a mask of one lesion of 4 × 4 × 4 voxels, at another place for every number."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    z, y, x = 5 + 2 * (number % 4), 6 + 3 * (number % 3), 8 + 4 * (number % 3)
    mask[z : z + 4, y : y + 4, x : x + 4] = 1
    return mask


def write(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write (z, y, x) voxels as NIfTI, on the grid of `scan` unless another affine (zyx → RAS) is given."""
    grid = axial_affine(SHAPE, SPACING) if affine is None else affine
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(np.ascontiguousarray(voxels.T), grid[:, [2, 1, 0, 3]]).to_filename(path)
    return path


def table(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write a CSV; the first row holds the columns."""
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return path


def make_labelled_store(root: Path) -> LabelledStore:
    """Return the store of PATIENTS, made through the front door."""
    for number, patient in enumerate(PATIENTS):
        voxels, mask = scan(number), lesion(number)
        if patient in POSITIVE:
            voxels[mask > 0] = LESION_HU
            write(root / "masks" / patient / "ct_pe.nii.gz", mask)
        write(root / "scans" / patient / "ct.nii.gz", voxels)
    ingest([root / "scans"], root / "store", config=IngestConfig(workers=1, patient_regex="(P[0-9])/ct"))
    labels = table(
        root / "labels.csv", [("patient", "pe"), *((patient, int(patient in POSITIVE)) for patient in PATIENTS)]
    )
    splits = table(root / "splits.csv", [("patient", "split"), *SPLITS.items()])
    return LabelledStore(root, root / "store", root / "masks", labels, splits)


def changed(config: CohortConfig, **changes: Any) -> CohortConfig:
    """Return a cohort's configuration with other fields; paths become text."""
    return replace(config, **{k: str(v) if isinstance(v, Path) else v for k, v in changes.items()})

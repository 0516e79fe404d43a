"""A small labelled cohort with two models' predictions, masks and scans, written as files; seeded."""

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import special

from fmct.inference.predictions import Prediction, write_predictions

TARGETS = ("pe", "strain")
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHAPE = (10, 16, 16)  # zyx


def write_cohort(folder: Path, *, patients: int = 40, seed: int = 0) -> None:
    """Write labels.csv, strong/ and weak/ (predictions.csv, masks/), references/ and scans/ for the last 12 patients.

    The first 16 patients are validation. Patient 20 fails; every fourth patient has two series; models have two seeds.
    """
    random = np.random.default_rng(seed)
    rows = ["patient,series,pe,strain,site,age"]
    tables: dict[str, list[Prediction]] = {"strong": [], "weak": []}
    for number in range(patients):
        patient, split = f"P{number:02d}", "val" if number < 16 else "test"
        labels = {target: int(random.random() < 0.45) for target in TARGETS}
        hidden = {target: random.normal() for target in TARGETS}
        for name in [f"{patient}a", f"{patient}b"][: 1 + (number % 4 == 0)]:
            unknown = number % 9 == 4
            strain = "" if unknown else labels["strain"]
            rows.append(f"{patient},{name},{labels['pe']},{strain},{'AB'[number % 2]},{40 + number}")
            for model, gain in (("strong", 3.0), ("weak", 0.7)):
                for target in TARGETS:
                    for seed_name in "01":
                        z = gain * (labels[target] - 0.4) + hidden[target] + 0.3 * random.normal()
                        p = float("nan") if number == 20 else float(special.expit(z))
                        error = "unreadable" if number == 20 else ""
                        tables[model].append(
                            Prediction(patient, name, target, p, seed=seed_name, split=split, error=error)
                        )
            if number >= patients - 12:
                _write_volumes(folder, name, bool(labels["pe"]), random)
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for model, table in tables.items():
        write_predictions(folder / model / "predictions.csv", table)


def _write_volumes(folder: Path, name: str, positive: bool, random: np.random.Generator) -> None:
    reference = np.zeros(SHAPE, dtype=np.uint8)
    if positive:
        reference[3:6, 4:8, 4:8] = 1
    scan = np.where(reference, 80, 20) + random.normal(0, 20, SHAPE)
    scan[:, :, :2] = -1000  # air beside the body
    strong, weak = reference.copy(), np.zeros_like(reference)
    strong[5] = 0
    weak[3, 4:6, 4:6] = reference[3, 4:6, 4:6]
    weak[8, 12:14, 12:14] = 1
    for place, voxels in (
        ("references", reference),
        ("scans", scan.astype(np.int16)),
        ("strong/masks", strong),
        ("weak/masks", weak),
    ):
        (folder / place).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels.T), AFFINE), folder / place / f"{name}.nii.gz")  # type: ignore[attr-defined]

"""Scans as public head-CT sets ship them, in tiny."""

from pathlib import Path

import numpy as np

from tests.io.dicom_writer import faults_allowed, write_series

SLICES = 10


def head(seed: int, *, bleeding: bool = False) -> np.ndarray:
    """Return slices (K, H, W) of something like a head in HU."""
    noise = np.random.default_rng(seed).normal(0, 10, (SLICES, 24, 24))
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in noise.shape), indexing="ij")
    radius = np.sqrt(0.5 * z**2 + y**2 + x**2)
    values = np.where(radius < 0.8, 35, -1000) + np.where(abs(radius - 0.8) < 0.1, 900, 0)
    if bleeding:
        values = np.where((z - 0.1) ** 2 + (y + 0.2) ** 2 + (x - 0.3) ** 2 < 0.12, 75, values)
    return np.clip(values + noise, -1024, 3000).astype(np.int16)


def write_scan(
    folder: Path, seed: int, patient: str, *, names: list[str], series: str, study: str, bleeding: bool = False
) -> None:
    """Write one DICOM series whose slices carry the given names, series first to last."""

    def change(dataset: object, number: int) -> None:
        with faults_allowed():  # RSNA's own identifiers are not UIDs
            dataset.PatientID = patient
            dataset.StudyInstanceUID = study

    scratch = folder / f".{seed}"
    paths = write_series(
        scratch, head(seed, bleeding=bleeding), spacing=(8.0, 8.0), step_mm=12.0, series_uid=series, change=change
    )
    for path, name in zip(paths, names, strict=True):
        path.rename(folder / f"{name}.dcm")
    scratch.rmdir()

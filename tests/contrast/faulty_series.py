"""DICOM series of one body that no contrast model may judge: each fault that only a header can have."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.io.dicom_writer import AXIAL, stacked, write_series

FAILED = {"bad-rescale", "not-scalar", "gantry-tilt"}  # a scan that is broken: a row with the code
LEFT_OUT = {"scout", "magnetic", "capture"}  # what lies beside scans without being one that is asked for: no row


def _set(**values: Any):
    def change(dataset: Any, number: int) -> None:
        dataset.PatientID = values["patient"]
        for name, value in values.items():
            if value is None:
                delattr(dataset, name)
            elif name != "patient":
                setattr(dataset, name, value)

    return change


def write_faulty(folder: Path, stack: np.ndarray, *, pixel_mm: float, step_mm: float) -> None:
    """Write a series for each fault into `folder`, named by it, and one without, `sound`. stack: HU (z, y, x)."""
    stack = np.clip(stack, -1024, 3000).astype(float)
    changes: dict[str, dict[str, Any]] = {
        "sound": {},
        "slope": {"RescaleSlope": None},
        "scout": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "magnetic": {"Modality": "MR"},
        "colour": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
        "capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    }
    for name, values in changes.items():
        write_series(
            folder / name, stack, spacing=(pixel_mm, pixel_mm), step_mm=step_mm, change=_set(patient=name, **values)
        )
    # A tilt of 15 degrees: slices are shifted against their normal.
    positions = stacked((0.0, 0.0, 0.0), AXIAL, step_mm * np.arange(len(stack)))
    positions[:, 1] += np.tan(np.radians(15)) * step_mm * np.arange(len(stack))
    write_series(folder / "tilt", stack, positions, spacing=(pixel_mm, pixel_mm), change=_set(patient="tilt"))

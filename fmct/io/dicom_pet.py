"""The factor from stored PET activity to the standardised uptake value by body weight (SUVbw)."""

import math
from typing import Any

from pydicom.dataset import Dataset

from fmct.io.dicom_header import number, quiet, read_dataset, text

_TIMES = ["SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime"]
_TAGS = ["Units", "DecayCorrection", "PatientWeight", "RadiopharmaceuticalInformationSequence", *_TIMES]


def suv_factor(path: str) -> tuple[float, str]:
    """Return (factor, units): values × factor are in `units`.

    GML is SUV already. BQML becomes SUV when weight, dose, half-life and times are stated and the decay correction is
    START or ADMIN (the vendor-neutral formula of the QIBA SUV working group); else it stays Bq/ml. Anything else keeps
    the header's word for its units.
    """
    with quiet():
        dataset = read_dataset(path, _TAGS)
        units = text(dataset, "Units").upper()
        if units == "GML":
            return 1.0, "SUV"
        if units != "BQML":
            return 1.0, units.lower()[:16] if units.isalnum() else "not stated"
        factor = _from_activity(dataset)
    return (factor, "SUV") if factor is not None else (1.0, "Bq/ml")


def _from_activity(dataset: Dataset) -> float | None:
    """Return 1 / (decayed dose in Bq per gram of body), None when the header does not say enough."""
    items: Any = dataset.get("RadiopharmaceuticalInformationSequence")
    if not items:
        return None
    tracer = items[0]
    weight, dose = number(dataset, "PatientWeight"), number(tracer, "RadionuclideTotalDose")
    if weight is None or dose is None or not (0.1 < weight < 500.0 and 1e3 < dose < 1e12):
        return None
    if text(dataset, "DecayCorrection").upper() == "ADMIN":
        return weight * 1000.0 / dose
    half_life, elapsed = number(tracer, "RadionuclideHalfLife"), _elapsed_seconds(dataset, tracer)
    if text(dataset, "DecayCorrection").upper() != "START" or half_life is None or elapsed is None:
        return None
    if not (1.0 < half_life < 1e7 and 0.0 <= elapsed < 20 * half_life):
        return None
    return weight * 1000.0 / (dose * math.pow(2.0, -elapsed / half_life))


def _elapsed_seconds(dataset: Dataset, tracer: Dataset) -> float | None:
    """Return the seconds from injection to the start of the scan; a scan past midnight is one day later."""
    scan = _seconds(text(dataset, "SeriesTime"))
    acquired = _seconds(text(dataset, "AcquisitionTime"))
    if (
        scan is not None
        and acquired is not None
        and scan > acquired
        and text(dataset, "SeriesDate") == text(dataset, "AcquisitionDate")
    ):
        scan = acquired  # the series was written again after the scan: its time is not the scan's
    injected = _seconds(text(tracer, "RadiopharmaceuticalStartTime"))
    if injected is None:
        injected = _seconds(text(tracer, "RadiopharmaceuticalStartDateTime")[8:])
    if scan is None or injected is None:
        return None
    return scan - injected if scan >= injected else scan - injected + 86400.0


def _seconds(value: str) -> float | None:
    """Return the seconds since midnight of a DICOM time HHMMSS.f, None when it is none."""
    digits = value.split("+")[0].split("-")[0].strip()
    try:
        return int(digits[:2]) * 3600.0 + int(digits[2:4]) * 60.0 + float(digits[4:] or 0.0)
    except ValueError:
        return None

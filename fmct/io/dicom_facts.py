"""The technical facts of a DICOM series that may be kept. An allow-list: nothing else leaves the header."""

import math
import re
from typing import Any

from pydicom.dataset import Dataset

from fmct.io.dicom_header import number, plain_word, quiet, read_dataset, strings, text
from fmct.io.refusals import rounded

_NUMBERS = {
    "kvp": "KVP",
    "slice_thickness_mm": "SliceThickness",
    "exposure_mas": "Exposure",
    "exposure_time_ms": "ExposureTime",
    "tube_current_ma": "XRayTubeCurrent",
    "reconstruction_diameter_mm": "ReconstructionDiameter",
    "header_tilt_degrees": "GantryDetectorTilt",
    "pitch": "SpiralPitchFactor",
    "repetition_time_ms": "RepetitionTime",
    "echo_time_ms": "EchoTime",
    "field_strength_t": "MagneticFieldStrength",
}
_WORDS = {
    "kernel": "ConvolutionKernel",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "body_part": "BodyPartExamined",
    "scan_options": "ScanOptions",
}
_POSITIONS = {f"{a}{b}" for a in ("HF", "FF") for b in ("S", "P", "DR", "DL")}
_TAGS = [*_NUMBERS.values(), *_WORDS.values(), "PatientPosition", "ImageType", "ContrastBolusAgent"]


def technical_facts(path: str) -> dict[str, Any]:
    """Return the facts of a series from one of its files: finite numbers and short plain words."""
    with quiet():
        return _facts(read_dataset(path, _TAGS))


def _facts(dataset: Dataset) -> dict[str, Any]:
    """Return the allow-listed facts of a header."""
    facts: dict[str, Any] = {}
    for name, keyword in _NUMBERS.items():
        value = number(dataset, keyword)
        if value is not None and math.isfinite(value) and abs(value) < 1e7:
            facts[name] = rounded(value)
    for name, keyword in _WORDS.items():
        word = plain_word("\\".join(strings(dataset, keyword)))
        if word:
            facts[name] = word
    if text(dataset, "PatientPosition") in _POSITIONS:
        facts["patient_position"] = text(dataset, "PatientPosition")
    kinds = strings(dataset, "ImageType")[:3]
    if kinds and all(re.fullmatch(r"[A-Z ]{1,16}", kind) for kind in kinds):
        facts["image_type"] = "\\".join(kinds)
    # Only whether an agent is named: its free text is not technical.
    agent = strings(dataset, "ContrastBolusAgent")
    facts["contrast_agent"] = "not stated" if not agent else ("named" if agent[0] else "empty")
    return facts

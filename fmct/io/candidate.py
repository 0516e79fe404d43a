"""A scan that was found but not yet read."""

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Candidate:
    """A scan to read: one file, or the files of one DICOM series.

    key: stable and without identity. paths, name (path relative to its source) and patient (the raw PatientID) may
    identify a person: they stay out of repr, logs and artefacts. series: a hash of the series UID. frames: for
    multi-frame DICOM, (file number, frame number) of each slice; empty means every frame of every file.
    """

    key: str
    paths: tuple[str, ...] = field(repr=False)
    format: str
    name: str = field(repr=False)
    patient: str | None = field(default=None, repr=False)
    series: str = ""
    modality: str | None = None
    bytes: int = 0
    frames: tuple[tuple[int, int], ...] = field(default=(), repr=False)


def digest(*parts: str) -> str:
    """Return 20 hexadecimal digits of the SHA-256 of the parts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:20]

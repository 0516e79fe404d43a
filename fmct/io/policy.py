"""What is taken and what is mended when scans are read."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath

from fmct.errors import ConfigError

MODALITIES = ("CT", "PT", "MR")
_CHOICES = {
    "tilt": ("refuse", "resample"),
    "spacing": ("refuse", "resample"),
    "kernels": ("refuse", "split"),
    "duplicates": ("refuse", "drop"),
    "derived": ("refuse", "accept"),
    "nifti_affine": ("agree", "sform", "qform"),
    "series_scope": ("everywhere", "folder"),
}


@dataclass(frozen=True)
class HuPlausibility:
    """What the values of a CT must look like; shares are of all voxels, values are HU.

    The first three hold only where no header names the modality (NIfTI, NRRD, MHA); the rest for every CT. An
    intercept that was applied twice leaves almost no voxel in −200…300 HU (soft tissue) and puts fat near −1124 HU,
    where a right scale has next to nothing: measured on 36 CT, at least .097 and at most .0001 when right, at most
    .015 and at least .049 when shifted.
    """

    air_below: float = -300.0
    min_air_share: float = 1e-4
    min_distinct_values: int = 32
    tissue_above: float = -700.0
    min_tissue_share: float = 1e-3
    tissue_median: tuple[float, float] = (-450.0, 700.0)
    shifted_max_soft_share: float = 0.02
    shifted_min_fat_share: float = 0.02


@dataclass(frozen=True)
class ReadPolicy:
    """Which scans are taken, and which faults are mended instead of refused.

    tilt, spacing: `resample` puts sheared or irregular slices on a regular orthogonal grid, each at its own position.
    kernels: `split` makes one series of each kernel under one UID. duplicates: `drop` removes copies of a file (same
    instance UID and position). derived: `accept` takes secondary and reformatted images. nifti_affine: which affine
    counts when sform and qform disagree (`agree` refuses). series_scope: `folder` promises that no series spans two
    folders, so that series come out folder by folder instead of after the whole walk. modality_patterns {file glob:
    CT|PT|MR} and modality_table (CSV with columns file, modality) name the modality of files whose format has none, in
    place of what the values say. pt_file_units names the units of such PT files. frame: which volume of a
    four-dimensional NIfTI file is meant (an echo, say), counted from 0; null refuses such files.
    """

    modalities: tuple[str, ...] = ("CT",)
    tilt: str = "refuse"
    spacing: str = "refuse"
    kernels: str = "refuse"
    duplicates: str = "refuse"
    derived: str = "refuse"
    nifti_affine: str = "agree"
    series_scope: str = "everywhere"
    modality_patterns: dict[str, str] = field(default_factory=dict)
    modality_table: str = ""
    pt_file_units: str = "SUV"
    frame: int | None = None
    min_slices: int = 8
    max_voxels: int = 2_000_000_000
    max_gap_mm: float = 10.0
    tilt_tolerance_degrees: float = 0.2
    spacing_tolerance: float = 0.05
    spacing_tolerance_mm: float = 0.06
    hu: HuPlausibility = field(default_factory=HuPlausibility)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        named = [*self.modalities, *self.modality_patterns.values()]
        unknown = sorted({m for m in named if m not in MODALITIES})
        if unknown or not self.modalities:
            raise ConfigError(f"modalities: expected one or more of {', '.join(MODALITIES)}, got {unknown or 'none'}.")
        if self.frame is not None and self.frame < 0:
            raise ConfigError(f"frame: expected the number of a volume, counted from 0; got {self.frame}.")
        if self.min_slices < 2 or self.max_voxels < 8:
            raise ConfigError("min_slices: expected at least 2; max_voxels: at least 8.")

    def named_modality(self, name: str) -> str | None:
        """Return the modality that the table or a pattern gives to a file (relative path), None when neither does."""
        path = PurePosixPath(name)
        table = _read_table(self.modality_table) if self.modality_table else {}
        for key in (name, path.name):
            if key in table:
                return table[key]
        for pattern, modality in self.modality_patterns.items():
            if fnmatch(name, pattern) or fnmatch(path.name, pattern):
                return modality
        return None


@lru_cache(maxsize=8)
def _read_table(path: str) -> Mapping[str, str]:
    """Return {file: modality} of a CSV (comma or semicolon, byte-order mark allowed). Raises ConfigError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"modality_table {path}: not readable ({type(error).__name__}).") from None
    delimiter = ";" if lines and ";" in lines[0] else ","
    rows = list(csv.DictReader(lines, delimiter=delimiter))
    if not rows or not {"file", "modality"} <= set(rows[0]):
        raise ConfigError(f"modality_table {path}: expected a CSV with the columns file and modality.")
    table = {str(row["file"]).strip(): str(row["modality"] or "").strip().upper() for row in rows}
    unknown = sorted(set(table.values()) - set(MODALITIES))
    if unknown:
        raise ConfigError(f"modality_table {path}: expected CT, PT or MR, got {', '.join(unknown)}.")
    return table

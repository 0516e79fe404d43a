"""Candidates: the connected components of a detector's probabilities, each a row with its scores and fate."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from fmct.errors import ConfigError, DataError
from fmct.metrics.lesions import CONNECTIVITIES
from fmct.table_files import read_rows, write_rows

KEPT, REMOVED, OPEN = "kept", "removed", ""
COLUMNS = (
    *("patient", "series", "split", "candidate", "x_mm", "y_mm", "z_mm", "voxel_z", "voxel_y", "voxel_x", "voxels"),
    *("volume_mm3", "detector_score", "discriminator_score", "verdict", "reason"),
)


@dataclass(frozen=True)
class Candidate:
    """One component. candidate: its value in the label map, from 1 on. x_mm, y_mm, z_mm: RAS, the mean of its voxels.

    voxel_z, voxel_y, voxel_x: that place on the label map's grid, rounded. detector_score: its largest probability.
    discriminator_score: the student's probability, NaN before it judged. verdict: kept, removed, or empty before that;
    reason: why it was removed.
    """

    patient: str
    series: str
    split: str
    candidate: int
    x_mm: float
    y_mm: float
    z_mm: float
    voxel_z: int
    voxel_y: int
    voxel_x: int
    voxels: int
    volume_mm3: float
    detector_score: float
    discriminator_score: float = float("nan")
    verdict: str = OPEN
    reason: str = ""

    @property
    def centre(self) -> tuple[int, int, int]:
        """The voxel (z, y, x) at its middle."""
        return (self.voxel_z, self.voxel_y, self.voxel_x)

    def judged(self, score: float, *, threshold: float) -> "Candidate":
        """Return it with the student's score, removed where that is below the threshold."""
        if score >= threshold:
            return replace(self, discriminator_score=score, verdict=OPEN, reason="")
        reason = f"discriminator: score {score:.3g} is under {threshold:g}"
        return replace(self, discriminator_score=score, verdict=REMOVED, reason=reason)

    def decided(self, kept: bool, reason: str) -> "Candidate":
        """Return it with the clean-up's verdict."""
        return replace(self, verdict=KEPT if kept else REMOVED, reason=reason)


def find_candidates(
    probability: np.ndarray,
    affine: np.ndarray,
    *,
    threshold: float,
    connectivity: int = 26,
    patient: str = "",
    series: str = "",
    split: str = "",
) -> tuple[np.ndarray, list[Candidate]]:
    """Return (label map int32, its candidates in the order of their labels) of voxels ≥ `threshold`.

    probability: (D, H, W) on the grid of (4, 4) `affine` (z, y, x) → RAS mm. connectivity: 6, 18 or 26, always said:
    libraries' defaults differ. Raises ConfigError for another number.
    """
    if connectivity not in CONNECTIVITIES:
        raise ConfigError(f"connectivity: expected 6, 18 or 26, got {connectivity}.")
    labels = np.zeros(probability.shape, dtype=np.int32)
    structure = ndimage.generate_binary_structure(3, CONNECTIVITIES[connectivity])
    ndimage.label(probability >= threshold, structure, output=labels)
    volume = abs(float(np.linalg.det(affine[:3, :3])))
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[box] == number
        centre = np.argwhere(inside).mean(axis=0) + [s.start for s in box]
        world = affine[:3, :3] @ centre + affine[:3, 3]
        x_mm, y_mm, z_mm = (float(round(w, 4)) for w in world)
        z, y, x = (int(np.floor(c + 0.5)) for c in centre)
        count, score = int(inside.sum()), float(probability[box][inside].max())
        found.append(Candidate(patient, series, split, number, x_mm, y_mm, z_mm, z, y, x, count, count * volume, score))
    return labels, found


def scored_map(labels: np.ndarray, candidates: Sequence[Candidate], score: str) -> np.ndarray:
    """Return (D, H, W) float32: at each candidate's voxels its `score` (detector_score or discriminator_score), else 0.

    Candidates that are not given are 0: give those that are left after a stage.
    """
    table = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.float32)
    for candidate in candidates:
        # A score of 0 would look like no candidate.
        table[candidate.candidate] = max(getattr(candidate, score), np.finfo(np.float32).tiny)
    return table[labels]


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """Write the table."""
    write_rows(path, COLUMNS, [asdict(candidate) for candidate in candidates])


def read_candidates(path: Path) -> list[Candidate]:
    """Return the table's candidates; none where it has only its header. Raises DataError for another table."""
    if path.is_file() and path.read_text(encoding="utf-8").count("\n") <= 1:
        return []
    rows = read_rows(path)
    missing = [column for column in COLUMNS if column not in rows[0]]
    if missing:
        raise DataError(f"{path}: not a table of candidates: it has no column {', '.join(missing)}.")
    return [_candidate(row) for row in rows]


def _candidate(row: dict[str, str]) -> Candidate:
    values: dict[str, Any] = {}
    for name, kind in Candidate.__annotations__.items():
        text = row[name]
        named = kind if isinstance(kind, str) else kind.__name__
        values[name] = text if named == "str" else int(text) if named == "int" else float(text or "nan")
    return Candidate(**values)

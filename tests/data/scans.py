"""Scans in memory for tests of views: what a store's entry says, and its pyramid."""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from fmct import pyramid
from fmct.data.foreground import Coarse, coarse_level, find_body
from fmct.phantoms.body import axial_affine
from fmct.shapes import Triple, TripleF
from fmct.store.ingest import IngestConfig, ingest
from fmct.volume import Volume


@dataclass(frozen=True)
class Level:
    factor: Triple
    shape: Triple


@dataclass(frozen=True)
class Scan:
    """An entry together with its voxels."""

    shape: Triple
    spacing_mm: TripleF
    affine: np.ndarray
    levels: tuple[Level, ...]
    voxels: tuple[np.ndarray, ...]
    id: str = "scan"
    modality: str = "CT"
    value_range: tuple[float, float] = (-1000.0, 3000.0)
    scale: float = 1.0

    def read(self, level: int, start: Triple, size: Triple) -> np.ndarray:
        box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        assert all(s.start >= 0 and s.stop <= n for s, n in zip(box, self.voxels[level].shape, strict=True))
        return np.ascontiguousarray(self.voxels[level][box])

    def coarse(self, above: float | None = -500.0) -> Coarse:
        level = coarse_level([level.shape for level in self.levels])
        return find_body(self.voxels[level], self.levels[level].factor, self.shape, above=above)


def scan_of(volume: Volume) -> Scan:
    z, y, x = (float(s) for s in volume.spacing)
    built = pyramid.build(volume.voxels, (z, y, x))
    levels = tuple(Level(factor, voxels.shape) for factor, voxels in built)
    return Scan(volume.shape, (z, y, x), volume.affine, levels, tuple(voxels for _, voxels in built))


def full_of(value: int, shape: Triple, spacing: TripleF) -> Scan:
    return scan_of(Volume(np.full(shape, value, dtype=np.int16), axial_affine(shape, spacing)))


def make_store(folder: Path, volumes: list[Volume]) -> Path:
    """Return a store of these volumes, ingested from NIfTI files."""
    scans = folder / "scans"
    scans.mkdir(parents=True)
    for number, volume in enumerate(volumes):
        # NIfTI orders x, y, z: the same grid with its axes named the other way round.
        affine = volume.affine.copy()
        affine[:, :3] = volume.affine[:, [2, 1, 0]]
        image = nibabel.Nifti1Image(np.ascontiguousarray(volume.voxels.transpose(2, 1, 0)), affine)
        nibabel.save(image, scans / f"scan_{number}.nii.gz")
    store = folder / "store"
    ingest([scans], store, config=IngestConfig(workers=1))
    return store

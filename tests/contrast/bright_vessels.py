"""A tiny SYNTHETIC cohort: bodies of soft tissue with a spine and two vessels that contrast makes brighter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from fmct import config as configuration
from fmct.phantoms.body import axial_affine
from fmct.shapes import Triple, TripleF
from fmct.store.ingest import IngestConfig, ingest
from fmct.volume import Volume

CPU = torch.device("cpu")
SHAPE: Triple = (36, 30, 34)
SPACING: TripleF = (6.0, 6.0, 6.0)
RISES = {"native": (0, 0, 0), "arterial": (260, 20, 10), "portal": (130, 140, 60), "delayed": (70, 70, 35)}
"""HU over the native value: of the artery, the vein, and the organ that lies before them."""
TIMES = {"arterial": 30, "portal": 70, "delayed": 240}
TINY = [
    "batch_size=8", "workers=0", "windows.per_series=2", "windows.size=[16,24,24]",
    "engine={kind: torch, precision: fp32}",  # what a run learns must not hang on whether a processor has fast bf16
    "architecture={size: tiny, embed_dim: 24, num_heads: 2, depth: 1, patch_size: [8, 8, 8]}",
    "input={windows: [{low: 0, high: 320}], spacing_mm: [6, 6, 6]}",
    "run.measure_peak=false", "run.progress_s=1e9", "network.hidden=16",
    "schedules.learning_rate={start: 0.0, peak: 1.0e-2, end: 1.0e-4, warmup: 0.1}",
]  # fmt: skip


def volume(seed: int, phase: str = "native", *, slices: int = SHAPE[0], rise: int | None = None) -> Volume:
    """Return a body; `rise` sets how much brighter the artery is than without contrast, in place of the phase's."""
    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in (slices, *SHAPE[1:])), indexing="ij")
    artery, vein, organ = RISES[phase] if rise is None else (rise, 0, 0)
    middle_y, middle_x = 15 + random.uniform(-1, 1), 17 + random.uniform(-1, 1)
    voxels = np.full((slices, *SHAPE[1:]), -1000.0)
    body = ((y - middle_y) / 11) ** 2 + ((x - middle_x) / 14) ** 2 < 1
    voxels[body] = 45
    voxels[body & (((y - middle_y + 3) / 5) ** 2 + ((x - middle_x - 4) / 5) ** 2 < 1)] = 55 + organ
    for side, brighter in ((-1.5, artery), (2.0, vein)):
        sway = np.sin(z / 6 + random.uniform(0, 6))
        voxels[(y - middle_y - 3) ** 2 + (x - middle_x - side - 0.5 * sway) ** 2 < 1.7**2] = 42 + brighter
    voxels[(y - middle_y - 7) ** 2 + (x - middle_x) ** 2 < 2.5**2] = 620
    noise = random.normal(0, 12, voxels.shape)
    return Volume(np.rint(voxels + noise).astype(np.int16), axial_affine((slices, *SHAPE[1:]), SPACING))


def write(path: Path, scan: Volume) -> Path:
    """Write a volume as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(np.ascontiguousarray(scan.voxels.T), scan.affine[:, [2, 1, 0, 3]]).to_filename(path)
    return path


@dataclass(frozen=True)
class Cohort:
    """Where it lies. Every patient has a native and an enhanced series; the phase of one training series is unknown."""

    store: Path
    labels: Path
    splits: Path

    @property
    def data(self) -> list[str]:
        """The overrides that name its tables."""
        return [f"data.store={self.store}", f"data.labels={self.labels}", f"data.splits={self.splits}"]


def cohort(folder: Path, *, patients: int = 15) -> Cohort:
    """Write and ingest it: three fifths train, one fifth each validate and test."""
    rows, places = ["patient,series,contrast,phase,seconds"], ["patient,split"]
    phases = list(TIMES)
    for number in range(patients):
        phase, name = phases[number % 3], f"P{number:02d}"
        for kind in ("native", phase):
            scan = volume(100 + 2 * number + (kind != "native"), kind)
            write(folder / "scans" / name / f"{kind}.nii.gz", scan)
            known = "" if number == 0 and kind != "native" else kind
            seconds = TIMES[kind] if known in TIMES else ""
            rows.append(f"{name},{name}/{kind}.nii.gz,{int(kind != 'native')},{known},{seconds}")
        places.append(f"{name},{('train', 'train', 'train', 'validation', 'test')[number // 3 % 5]}")
    labels, splits = folder / "labels.csv", folder / "splits.csv"
    labels.write_text("\n".join(rows) + "\n")
    splits.write_text("\n".join(places) + "\n")
    ingest([folder / "scans"], folder / "store", config=IngestConfig(workers=1, patient_regex="(P[0-9]+)/"))
    return Cohort(folder / "store", labels, splits)


def recipe(*overrides: str) -> tuple[Any, Any]:
    """Return (recipe, configuration) of the shipped contrast.yaml with tiny settings and overrides."""
    tree = configuration.read_tree(["finetune/contrast"], [*TINY, *overrides])
    module = configuration.import_recipe(tree["recipe"])
    return module, configuration.build(module.Config, tree)

"""A tiny SYNTHETIC cohort of paired phantoms, ingested and split by hand, and the settings of runs of seconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmct import config as configuration
from fmct.phantoms.cohort import PhantomCohort, write_phantom_cohort
from fmct.store.ingest import IngestConfig, ingest
from fmct.table_files import read_rows

CPU = torch.device("cpu")
TINY = [
    "steps=4", "batch_size=2", "workers=0", "run.save_every=2", "run.measure_peak=false", "run.progress_s=1e9",
    "windows.size=[16,16,16]", "engine.kind=torch",
]  # fmt: skip
SCRATCH = [
    "architecture={size: tiny, embed_dim: 24, num_heads: 2, depth: 2, patch_size: [4, 4, 4]}",
    "input={windows: [{low: -1000, high: 400}, {low: -20, high: 120}], spacing_mm: [9, 9, 9]}",
]  # fmt: skip
DUAL = ["network={taps: 2, width: 16, stem_channels: 8, hidden: 16, projector_dim: 8}"]


@dataclass(frozen=True)
class Corpus:
    """A phantom cohort and its store."""

    files: PhantomCohort
    store: Path
    splits: Path

    @property
    def data(self) -> list[str]:
        """The overrides that name its tables."""
        return [
            f"data.store={self.store}",
            f"data.labels={self.files.labels}",
            f"data.masks={self.files.masks}",
            f"data.pairs={self.files.pairs}",
            f"data.splits={self.splits}",
            "data.targets=[pe]",
        ]


def corpus(folder: Path) -> Corpus:
    """Write and ingest eight patients; four train, two validate and two test, each split with and without emboli."""
    files = write_phantom_cohort(
        folder / "phantom", patients=8, seed=1, shape=(24, 24, 24), spacing_mm=(9.0, 9.0, 9.0), unpaired_share=0.25,
        unmasked_share=0.0,
    )  # fmt: skip
    store, splits = folder / "store", folder / "splits.csv"
    ingest([str(files.scans)], store, config=IngestConfig(workers=1, patients=str(files.patients)))
    by_label: dict[str, list[str]] = {"0": [], "1": []}
    for row in read_rows(files.labels):
        by_label[row["pe"]].append(row["patient"])
    places = ("train", "train", "validation", "test")
    rows = [pair for patients in by_label.values() for pair in zip(patients, places, strict=True)]
    splits.write_text("patient,split\n" + "".join(f"{patient},{place}\n" for patient, place in rows))
    return Corpus(files, store, splits)


def recipe(config: str, *overrides: str) -> tuple[Any, Any]:
    """Return (recipe, configuration) of a shipped config and overrides."""
    tree = configuration.read_tree([f"finetune/{config}"], [*TINY, *overrides])
    module = configuration.import_recipe(tree["recipe"])
    return module, configuration.build(module.Config, tree)

"""A tiny SYNTHETIC cohort of angiograms, ingested, for the tests of slabs and of both stages."""

from dataclasses import dataclass
from pathlib import Path

from fmct.phantoms.angiograms import AngiogramCohort, write_angiograms
from fmct.store.ingest import IngestConfig, ingest

SPACING = (5.0, 6.0, 6.0)


@dataclass(frozen=True)
class Angiograms:
    """The cohort's files and its store."""

    files: AngiogramCohort
    store: Path

    @property
    def data(self) -> list[str]:
        """The overrides that name its tables."""
        return [
            f"data.store={self.store}",
            f"data.labels={self.files.labels}",
            f"data.masks={self.files.masks}",
            f"data.splits={self.files.splits}",
            "data.targets=[pe]",
        ]


def angiograms(folder: Path) -> Angiograms:
    """Write and ingest eight patients: four train, two validate and two test, half of each with emboli."""
    files = write_angiograms(folder / "phantom", counts=(4, 2, 2), seed=1, shape=(26, 56, 56), spacing_mm=SPACING)
    store = folder / "store"
    ingest([str(files.scans)], store, config=IngestConfig(workers=1, patients=str(files.patients)))
    return Angiograms(files, store)

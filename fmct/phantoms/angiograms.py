"""A SYNTHETIC cohort of CT pulmonary angiograms on disk: scans, sparse annotations, whole masks, labels and splits.

  python -m fmct.phantoms.angiograms FOLDER --train 100 --validation 40 --test 100 --seed 0

makes one, ready for `fmct ingest`.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from fmct import randomness
from fmct.artefacts import write_text
from fmct.data.pair_preparation import write_volume
from fmct.errors import DataError, told_to_the_user
from fmct.phantoms.embolism import phantom_angiogram
from fmct.shapes import Triple
from fmct.table_files import write_rows

TARGET = "pe"
SPLITS = ("train", "validation", "test")
_MARK = "SYNTHETIC phantom (fmct): not a patient"


@dataclass(frozen=True)
class AngiogramCohort:
    """What was written, inside `folder`. masks: sparse annotations, of every third or so axial slice; references: whole
    masks of the same emboli, to judge by. labels, splits, patients: tables.
    """

    folder: Path
    scans: Path
    masks: Path
    references: Path
    labels: Path
    splits: Path
    patients: Path

    @classmethod
    def at(cls, folder: Path) -> "AngiogramCohort":
        """Return the paths of a cohort in a folder."""
        places = [folder / name for name in ("scans", "masks", "references")]
        return cls(folder, *places, *(folder / f"{name}.csv" for name in ("labels", "splits", "patients")))


def write_angiograms(
    folder: str | Path,
    *,
    counts: Sequence[int],
    seed: int = 0,
    shape: Triple = (48, 96, 96),
    spacing_mm: Sequence[float] = (2.5, 3.6, 3.6),
    annotate_every: int = 3,
    workers: int = 1,
) -> AngiogramCohort:
    """Write SYNTHETIC patients and return where they lie; counts: of train, validation and test, half with emboli each.

    annotate_every: of the axial slices with embolus, the first and every so manieth are annotated in `masks`. Raises
    DataError when the folder holds something already, or for numbers that cannot be.
    """
    folder = Path(folder)
    if len(counts) != len(SPLITS) or min(counts) < 2 or annotate_every < 1 or workers < 1:
        raise DataError("phantom angiograms: expected at least 2 patients a split, annotate_every and workers ≥ 1.")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder}: not empty. A cohort is written into a folder of its own; choose another or clear it."
        )
    splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    positive = [number % 2 == 1 for count in counts for number in range(count)]
    write = partial(
        _write_patient, folder, seed=seed, shape=shape, spacing_mm=tuple(spacing_mm), annotate_every=annotate_every
    )
    numbers = range(len(splits))
    if workers == 1:
        rows = [write(number, label) for number, label in zip(numbers, positive, strict=True)]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(write, numbers, positive, chunksize=4))
    names = [row["patient"] for row in rows]
    write_rows(folder / "labels.csv", ["patient", TARGET, "source"], rows)
    write_rows(
        folder / "splits.csv",
        ["patient", "split"],
        [{"patient": p, "split": s} for p, s in zip(names, splits, strict=True)],
    )
    write_rows(
        folder / "patients.csv", ["file", "patient"], [{"file": f"{p}/ctpa.nii.gz", "patient": p} for p in names]
    )
    write_text(folder / "README.md", _readme(folder, counts, seed))
    return AngiogramCohort.at(folder)


def sparse(mask: np.ndarray, every: int) -> np.ndarray:
    """Return a (D, H, W) mask of which the first axial slice with lesion and each `every` after it are kept."""
    held = np.flatnonzero(mask.any(axis=(1, 2)))
    kept = np.zeros_like(mask)
    if len(held):
        annotated = held[(held - held[0]) % every == 0]
        kept[annotated] = mask[annotated]
    return kept


def _write_patient(
    folder: Path, number: int, positive: bool, *, seed: int, shape: Triple, spacing_mm: tuple[float, ...],
    annotate_every: int,
) -> dict[str, object]:  # fmt: skip
    """Write one patient's files and return the row of the table of labels."""
    name = f"SYN-{number:04d}"
    person = randomness.word(seed, "angiogram", number) >> 1
    made = phantom_angiogram(person, shape=shape, spacing_mm=spacing_mm, positive=positive)
    write_volume(folder / "scans" / name / "ctpa.nii.gz", made.ctpa, title=_MARK)
    if made.label:
        write_volume(folder / "references" / name / "ctpa_pe.nii.gz", made.mask, title=_MARK)
        annotated = replace(made.mask, voxels=sparse(made.mask.voxels, annotate_every))
        write_volume(folder / "masks" / name / "ctpa_pe.nii.gz", annotated, title=_MARK)
    return {"patient": name, TARGET: made.label, "source": "SYNTHETIC"}


def _readme(folder: Path, counts: Sequence[int], seed: int) -> str:
    return f"""# SYNTHETIC CT pulmonary angiograms: {sum(counts)} phantoms, seed {seed}

SYNTHETIC. Drawn by fmct from formulas; no patient, no hospital. Results on them say whether code works, nothing about
people, and stand beside no clinical number. Not a medical device.

| what | where |
|---|---|
| scans | `scans/SYN-NNNN/ctpa.nii.gz` |
| sparse annotations of emboli; whole masks of the same | `masks/`, `references/` |
| label `{TARGET}` and split of each patient | `labels.csv`, `splits.csv` |
| whose file is whose, for the ingest | `patients.csv` |

    fmct ingest {folder.name}/scans {folder.name}-store patients={folder.name}/patients.csv
"""


@told_to_the_user
def main(arguments: Sequence[str] | None = None) -> int:
    """Write a SYNTHETIC cohort as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fmct.phantoms.angiograms", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", help="a new folder for scans, masks and tables")
    for split, count in zip(SPLITS, (100, 40, 100), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"patients (default {count})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args(arguments)
    counts = [chosen.train, chosen.validation, chosen.test]
    write_angiograms(chosen.folder, counts=counts, seed=chosen.seed, workers=chosen.workers)
    print((Path(chosen.folder) / "README.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A SYNTHETIC cohort on disk, in the form in which real pairs arrive: scans, masks, labels and pairs.

  python -m fmct.phantoms.cohort FOLDER --patients 24 --seed 0

makes one, ready for `fmct ingest`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmct import randomness
from fmct.artefacts import write_text
from fmct.data.pair_preparation import write_volume
from fmct.data.pair_table import write_pair_table
from fmct.errors import DataError, told_to_the_user
from fmct.phantoms.embolism import TITLE, PhantomPair, phantom_pair
from fmct.registration.pair_quality import measure
from fmct.shapes import Triple
from fmct.table_files import write_rows

TARGET = "pe"
_MARK = "SYNTHETIC phantom (fmct): not a patient"


@dataclass(frozen=True)
class PhantomCohort:
    """What was written: folders of scans and masks, the tables of labels, pairs and patients, all inside `folder`."""

    folder: Path
    scans: Path
    masks: Path
    labels: Path
    pairs: Path
    patients: Path


def write_phantom_cohort(
    folder: str | Path,
    *,
    patients: int,
    seed: int = 0,
    shape: Triple = (64, 64, 64),
    spacing_mm: Sequence[float] = (3.0, 3.0, 3.0),
    positive_share: float = 0.5,
    unpaired_share: float = 0.125,
    unmasked_share: float = 0.125,
    misregistration_mm: float = 4.0,
) -> PhantomCohort:
    """Write `patients` SYNTHETIC patients and return where they lie.

    positive_share of them have emboli, unmasked_share of those a label but no mask, and unpaired_share of all no
    angiogram. Minutes between the scans are drawn: most within the hour, some later. The angiograms lie on the scans'
    grids, up to misregistration_mm off: the best that a registration leaves. Raises DataError when the folder holds
    something already, or for shares outside 0 to 1.
    """
    folder = Path(folder)
    if patients < 1 or not all(0 <= share <= 1 for share in (positive_share, unpaired_share, unmasked_share)):
        raise DataError("phantom cohort: expected at least one patient and shares from 0 to 1.")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder}: not empty. A cohort is written into a folder of its own; choose another or clear it."
        )
    order = randomness.permutation(patients, seed, "cohort", "positive")
    positives = round(positive_share * patients)
    positive, unmasked = set(order[:positives].tolist()), set(order[: round(unmasked_share * positives)].tolist())
    lone = randomness.permutation(patients, seed, "cohort", "unpaired")[: round(unpaired_share * patients)].tolist()
    labels, pairs, owners = [], [], []
    for number in range(patients):
        name = f"SYN-{number:04d}"
        pair = phantom_pair(
            randomness.word(seed, "cohort", number) >> 1,
            shape=shape,
            spacing_mm=spacing_mm,
            positive=number in positive,
            misregistration_mm=misregistration_mm,
        )
        row = _write_patient(folder, name, pair, paired=number not in lone, masked=number not in unmasked)
        if row["ctpa"]:
            row["minutes"] = _minutes(seed, number)
        pairs.append(row)
        labels.append({"patient": name, "series": row["nct"], TARGET: pair.label, "source": "SYNTHETIC"})
        owners += [{"file": row[scan], "patient": name} for scan in ("nct", "ctpa") if row[scan]]
    write_rows(folder / "labels.csv", ["patient", "series", TARGET, "source"], labels)
    write_pair_table(folder / "pairs.csv", pairs)
    write_rows(folder / "patients.csv", ["file", "patient"], owners)
    write_text(folder / "README.md", _readme(folder, patients, positives, seed))
    return PhantomCohort(
        folder,
        folder / "scans",
        folder / "masks",
        folder / "labels.csv",
        folder / "pairs.csv",
        folder / "patients.csv",
    )


def _write_patient(folder: Path, name: str, pair: PhantomPair, *, paired: bool, masked: bool) -> dict[str, object]:
    """Write one patient's files and return the row of the pairs table."""
    write_volume(folder / "scans" / name / "nct.nii.gz", pair.nct, title=_MARK)
    row: dict[str, object] = {"patient": name, "nct": f"{name}/nct.nii.gz", "ctpa": "", "label": pair.label}
    row["source"] = "SYNTHETIC"
    if pair.label and masked:
        write_volume(folder / "masks" / name / "nct_pe.nii.gz", pair.mask, title=_MARK)
        row |= {"mask": f"{name}/nct_pe.nii.gz", "annotated": "nct"}
    if paired:
        write_volume(folder / "scans" / name / "ctpa.nii.gz", pair.ctpa, title=_MARK)
        quality = measure(
            pair.nct,
            pair.ctpa,
            valid=pair.valid.voxels > 0,
            masks={"heart": pair.heart.voxels > 0},
        )
        # The vessels' Dice is left out: on a coarse grid it measures the voxels, not a registration.
        row |= {"ctpa": f"{name}/ctpa.nii.gz", "registration": "given", "heart_hu": quality.heart_hu}
        row |= {"lung_dice": quality.lung_dice, "overlap": quality.overlap}
    return row


def _minutes(seed: int, number: int) -> float:
    """Return minutes between two scans: four of five within the hour, the others within half a day."""
    random = randomness.generator(seed, "cohort", "minutes", number)
    low, high = (5, 60) if random.random() < 0.8 else (60, 720)
    return float(np.round(random.uniform(low, high)))


def _readme(folder: Path, patients: int, positives: int, seed: int) -> str:
    name = folder.name
    return f"""# {TITLE}: {patients} phantoms, seed {seed}

SYNTHETIC. Drawn by fmct from formulas; no patient, no hospital. {positives} have emboli. Results on them say whether
code works, nothing about people, and stand beside no clinical number. Not a medical device.

| what | where |
|---|---|
| non-contrast scans and angiograms | `scans/SYN-NNNN/nct.nii.gz`, `ctpa.nii.gz` |
| emboli, on the non-contrast scan's grid | `masks/SYN-NNNN/nct_pe.nii.gz` |
| label `{TARGET}` of each series | `labels.csv` |
| pairs with minutes between the scans | `pairs.csv` |
| whose file is whose, for the ingest | `patients.csv` |

    fmct ingest {name}/scans {name}-store patients={name}/patients.csv
    fmct split {name}-store
"""


@told_to_the_user
def main(arguments: Sequence[str] | None = None) -> int:
    """Write a SYNTHETIC cohort as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fmct.phantoms.cohort", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", help="a new folder for scans, masks and tables")
    parser.add_argument("--patients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=64, help="voxels a side")
    parser.add_argument("--spacing", type=float, default=3.0, help="mm a voxel")
    parser.add_argument("--misregistration", type=float, default=4.0, help="mm at most between the two scans")
    chosen = parser.parse_args(arguments)
    write_phantom_cohort(
        chosen.folder,
        patients=chosen.patients,
        seed=chosen.seed,
        shape=(chosen.side,) * 3,
        spacing_mm=(chosen.spacing,) * 3,
        misregistration_mm=chosen.misregistration,
    )
    print((Path(chosen.folder) / "README.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

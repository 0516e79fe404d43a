"""A SYNTHETIC cohort of brain phantoms on disk, in the form in which real ones arrive: scans, masks, brains, tables.

  python -m fmct.phantoms.brain_cohort FOLDER --patients 24 --seed 0

makes one, ready for `fmct ingest` with configs/store/mr.yaml.
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
from fmct.errors import DataError, told_to_the_user
from fmct.phantoms.brain_mr import TITLE, BrainPhantom, brain_phantom
from fmct.shapes import Triple
from fmct.table_files import write_rows

TARGET = "microbleed"
_MARK = "SYNTHETIC phantom (fmct): not a patient"


@dataclass(frozen=True)
class BrainCohort:
    """What was written: folders of scans, lesion masks and brain masks, and the tables, all inside `folder`."""

    folder: Path
    scans: Path
    masks: Path
    brains: Path
    labels: Path
    patients: Path
    splits: Path


def write_brain_cohort(
    folder: str | Path,
    *,
    patients: int,
    seed: int = 0,
    shape: Triple = (64, 80, 64),
    spacing_mm: Sequence[float] = (1.5, 1.5, 1.5),
    sign: str = "dark",
    free_share: float = 0.25,
    test_share: float = 0.3,
) -> BrainCohort:
    """Write `patients` SYNTHETIC patients and return where they lie.

    sign: `dark` or `bright`, as of brain_phantom. free_share of the patients have no microbleed; their masks are empty
    files, which says that nothing is there. splits.csv puts test_share of the patients into test and half as many into
    validation. Raises DataError when the folder holds something already.
    """
    folder = Path(folder)
    if patients < 1 or not 0 <= free_share < 1 or not 0 <= test_share < 1:
        raise DataError("brain phantoms: expected at least one patient and shares from 0 to below 1.")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: not empty. A cohort is written into a folder of its own; choose another.")
    order = randomness.permutation(patients, seed, "brains", "free").tolist()
    free = set(order[: round(free_share * patients)])
    tested, held = round(test_share * patients), round(test_share / 2 * patients)
    places = randomness.permutation(patients, seed, "brains", "split").tolist()
    split = {n: "test" if k < tested else "validation" if k < tested + held else "train" for k, n in enumerate(places)}
    labels, owners, splits = [], [], []
    for number in range(patients):
        name = f"SYN-{number:04d}"
        drawn = int(randomness.generator(seed, "brains", "lesions", number).integers(1, 7))
        phantom = brain_phantom(
            randomness.word(seed, "brains", number) >> 1,
            shape=shape,
            spacing_mm=spacing_mm,
            lesions=0 if number in free else drawn,
            sign=sign,
        )
        _write_patient(folder, name, phantom)
        sizes = " ".join(f"{d:.1f}" for d in phantom.diameters_mm)
        series = f"{name}/swi.nii.gz"
        labels.append(
            {"patient": name, "series": series, TARGET: int(bool(phantom.diameters_mm)), "diameters_mm": sizes}
        )
        owners.append({"file": series, "patient": name})
        splits.append({"patient": name, "split": split[number]})
    write_rows(folder / "labels.csv", ["patient", "series", TARGET, "diameters_mm"], labels)
    write_rows(folder / "patients.csv", ["file", "patient"], owners)
    write_rows(folder / "splits.csv", ["patient", "split"], splits)
    lesions = int(np.sum([len(str(row["diameters_mm"]).split()) for row in labels]))
    write_text(folder / "README.md", _readme(folder, patients, lesions, seed, sign))
    parts = ("scans", "masks", "brains", "labels.csv", "patients.csv", "splits.csv")
    return BrainCohort(folder, *(folder / part for part in parts))


def _write_patient(folder: Path, name: str, phantom: BrainPhantom) -> None:
    """Write one patient's scan and masks."""
    write_volume(folder / "scans" / name / "swi.nii.gz", phantom.image, title=_MARK)
    write_volume(folder / "masks" / name / f"swi_{TARGET}.nii.gz", phantom.lesions, title=_MARK)
    write_volume(folder / "brains" / name / "swi_brain.nii.gz", phantom.brain, title=_MARK)


def _readme(folder: Path, patients: int, lesions: int, seed: int, sign: str) -> str:
    name = folder.name
    return f"""# {TITLE}: {patients} phantoms, {lesions} microbleeds, seed {seed}, lesion_sign {sign}

SYNTHETIC. Drawn by fmct from formulas; no patient, no hospital. Results on them say whether code works, nothing about
people, and stand beside no clinical number. Not a medical device.

| what | where |
|---|---|
| scans | `scans/SYN-NNNN/swi.nii.gz` |
| microbleeds, empty where there is none | `masks/SYN-NNNN/swi_{TARGET}.nii.gz` |
| brains | `brains/SYN-NNNN/swi_brain.nii.gz` |
| whether there is one, and their diameters in mm | `labels.csv` |
| whose file is whose, and who is in which split | `patients.csv`, `splits.csv` |

    fmct ingest {name}/scans {name}-store config=store/mr patients={name}/patients.csv
"""


@told_to_the_user
def main(arguments: Sequence[str] | None = None) -> int:
    """Write a SYNTHETIC cohort as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fmct.phantoms.brain_cohort", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", help="a new folder for scans, masks and tables")
    parser.add_argument("--patients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sign", choices=("dark", "bright"), default="dark", help="dark: T2*/SWI, bright: QSM")
    parser.add_argument("--spacing", type=float, default=1.5, help="mm a voxel; the head keeps its 96 x 120 x 96 mm")
    chosen = parser.parse_args(arguments)
    side = [max(8, round(mm / chosen.spacing)) for mm in (96, 120, 96)]
    write_brain_cohort(
        chosen.folder,
        patients=chosen.patients,
        seed=chosen.seed,
        shape=(side[0], side[1], side[2]),
        spacing_mm=(chosen.spacing,) * 3,
        sign=chosen.sign,
    )
    print((Path(chosen.folder) / "README.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

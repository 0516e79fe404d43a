"""A SYNTHETIC cohort of contrast phases from real CT without contrast: scans, labels, and a store of them.

  python -m fmct.contrast.enhancement SOURCE FOLDER --seed 0 --pattern ct.nii.gz

SOURCE is a folder of non-contrast CT. Every series gives `--per-series` draws: the even ones native, the odd ones
arterial, portal and delayed in turn. The same command again goes on where it stopped. FOLDER gets scans/, labels.csv
(patient, series, contrast, phase, seconds), patients.csv and store/. Research only, not a medical device.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from fmct.artefacts import read_json, write_json, write_text
from fmct.contrast.drawing import Anatomy, enhance, find_anatomy
from fmct.contrast.time_curves import draw_injection
from fmct.data.pair_preparation import write_volume
from fmct.errors import DataError, told_to_the_user
from fmct.io import Candidate, ReadPolicy, discover, read_candidate
from fmct.models.contrast import PHASES
from fmct.store.ingest import IngestConfig, ingest
from fmct.store.progress import Reporter, Silent, reporter
from fmct.table_files import write_rows
from fmct.volume import Volume

HELD_OUT = ("STS_033", "STS_036")
"""Patients of the soft-tissue-sarcoma set who are also among the nine volumes that a gate is judged on."""
COLUMNS = ("patient", "series", "contrast", "phase", "seconds")
FORMAT = ("fmct-enhanced-cohort", "1.0")
_TITLE = "SYNTHETIC enhancement (fmct) of a real CT"
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class EnhancedCohort:
    """What was written, all inside `folder`. refused: (name of the source, why) of what was left out."""

    folder: Path
    scans: Path
    labels: Path
    patients: Path
    store: Path
    refused: tuple[tuple[str, str], ...] = ()


def write_enhanced_cohort(
    folder: str | Path,
    sources: str | Path | Sequence[str | Path],
    *,
    seed: int,
    per_series: int = 6,
    pattern: str = "*",
    without: Sequence[str] = HELD_OUT,
    make_store: bool = True,
    workers: int = 0,
    progress: Reporter | None = None,
) -> EnhancedCohort:
    """Write `per_series` draws of every non-contrast CT under `sources`, their labels and a store; return where.

    pattern: of the file names to take (DICOM: of the folder). without: parts of a path that exclude a scan. A patient
    is the DICOM PatientID, else the folder that a file lies in, else the file's name. What was written before by the
    same settings is kept. workers: of the ingest. Raises DataError when the folder holds another cohort, and when no
    source can be used.
    """
    folder, progress = Path(folder), progress or Silent()
    roots = [Path(source) for source in ([sources] if isinstance(sources, (str, Path)) else sources)]
    if per_series < 2:
        raise DataError(f"per_series={per_series}: expected at least 2, one native draw and one enhanced.")
    _claim(folder, {"seed": seed, "per_series": per_series})
    found = [item for item in discover(roots) if isinstance(item, Candidate)]
    chosen = [item for item in found if _wanted(item, pattern, without)]
    names = _patients(chosen)
    rows, refused = [], []
    progress.start(len(chosen))
    for item, patient in zip(chosen, names, strict=True):
        try:
            rows += _write_series(folder, item, patient, seed=seed, per_series=per_series)
        except DataError as error:
            refused.append((item.name, str(error)))
        progress.advance(f"{len(refused)} not usable")
    progress.close()
    if not rows:
        why = "; ".join(sorted({reason for _, reason in refused})[:3]) or f"{len(found)} scans, none named {pattern}"
        raise DataError(f"{', '.join(map(str, roots))}: no CT that can be enhanced ({why}).")
    write_rows(folder / "labels.csv", COLUMNS, rows)
    write_rows(
        folder / "patients.csv", ("file", "patient"), [{"file": r["series"], "patient": r["patient"]} for r in rows]
    )
    write_text(folder / "README.md", _readme(folder, rows, seed))
    if make_store:
        config = IngestConfig(patients=str(folder / "patients.csv"), workers=workers)
        ingest([folder / "scans"], folder / "store", config=config)
    return EnhancedCohort(
        folder, folder / "scans", folder / "labels.csv", folder / "patients.csv", folder / "store", tuple(refused)
    )


def phase_of_draw(number: int) -> str:
    """Return the phase of a series' draw: native, arterial, native, portal, native, delayed, and so on."""
    return PHASES[0] if number % 2 == 0 else PHASES[1 + (number // 2) % 3]


def _claim(folder: Path, settings: dict[str, int]) -> None:
    """Raise DataError unless the folder is empty or holds a cohort of these settings; write the record."""
    record = folder / "cohort.json"
    if record.is_file():
        known = read_json(record, *FORMAT)
        if known != settings:
            raise DataError(
                f"{folder}: holds a cohort of {json.dumps(known)}, not {json.dumps(settings)}. Name a new one."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: not empty. A cohort is written into a folder of its own; name a new one.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, *FORMAT, settings)


def _wanted(item: Candidate, pattern: str, without: Sequence[str]) -> bool:
    path = PurePosixPath(item.name)
    name = path.name if item.format != "dicom" else path.parent.name
    return fnmatch(name, pattern) and not any(part in item.paths[0] for part in without)


def _patients(items: Sequence[Candidate]) -> list[str]:
    """Return whose each scan is, in characters that a folder may have."""
    names = []
    for item in items:
        path = Path(item.paths[0])
        stem = next((path.name[: -len(end)] for end in _ENDINGS if path.name.lower().endswith(end)), path.name)
        name = item.patient or (path.parent.name if "/" in item.name or item.format == "dicom" else stem)
        names.append("".join(c if c.isalnum() or c in "-_" else "_" for c in name))
    return names


def _write_series(
    folder: Path, item: Candidate, patient: str, *, seed: int, per_series: int
) -> list[dict[str, object]]:
    """Write the draws of one series that are not there, and return the rows of all."""
    source: tuple[Volume, Anatomy] | None = None
    limb_file = folder / "scans" / patient / f".{item.key}.json"
    limb = read_json(limb_file, *FORMAT)["limb"] if limb_file.is_file() else None
    rows = []
    for number in range(per_series):
        target = folder / "scans" / patient / f"{item.key}-{number:02d}.nii.gz"
        if limb is None or not target.is_file():
            source = source or _open(item)
            limb = source[1].limb
        injection = draw_injection(phase_of_draw(number), seed, item.key, number, limb=bool(limb))
        if not target.is_file():
            assert source is not None
            partial = target.with_name(f".{target.name.removesuffix('.nii.gz')}.partial.nii.gz")
            write_volume(partial, enhance(*source, injection, seed, item.key, number), title=_TITLE)
            partial.rename(target)
        rows.append(
            {
                "patient": patient,
                "series": f"{patient}/{target.name}",
                "contrast": int(injection.seconds is not None),
                "phase": phase_of_draw(number),
                "seconds": injection.seconds,
            }
        )
    if not limb_file.is_file():
        write_json(limb_file, *FORMAT, {"limb": bool(limb)})
    return rows


def _open(item: Candidate) -> tuple[Volume, Anatomy]:
    volume = read_candidate(item, ReadPolicy())
    return volume, find_anatomy(volume)


def _readme(folder: Path, rows: Sequence[dict[str, object]], seed: int) -> str:
    counts = {phase: sum(row["phase"] == phase for row in rows) for phase in PHASES}
    told = ", ".join(f"{count} {phase}" for phase, count in counts.items())
    return f"""# SYNTHETIC enhancement of real CT, seed {seed}

{len(rows)} scans of {len({row["patient"] for row in rows})} patients: {told}. The anatomy and the noise are real, the
contrast is not: vessels and organs were told by HU, place and shape, some vessels drawn, and all brightened after
textbook curves. Results on it say whether code learns this, nothing about people. Not a medical device.

`labels.csv` has patient, series, contrast, phase and seconds after the injection; `store/` is ready to train on:

    fmct split {folder.name}/store
"""


@told_to_the_user
def main(arguments: Sequence[str] | None = None) -> int:
    """Write a cohort as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fmct.contrast.enhancement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="folders or files of CT without contrast")
    parser.add_argument("folder", metavar="FOLDER", help="a folder for the cohort")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-series", type=int, default=6, help="draws of every series (default 6)")
    parser.add_argument("--pattern", default="*", help="of the file names to take, such as ct.nii.gz")
    parser.add_argument(
        "--without",
        action="append",
        metavar="PART",
        help=f"leave out scans with this in their path (default: {', '.join(HELD_OUT)})",
    )
    chosen = parser.parse_args(arguments)
    cohort = write_enhanced_cohort(
        chosen.folder,
        chosen.source,
        seed=chosen.seed,
        per_series=chosen.per_series,
        pattern=chosen.pattern,
        without=HELD_OUT if chosen.without is None else chosen.without,
        progress=reporter(10.0),
    )
    for name, reason in cohort.refused:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    print((cohort.folder / "README.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What each kind of normalisation makes of MR files: a row a volume, its values, or why it is refused.

  python -m fmct.lesions.normalisation_table FOLDER

Every file below FOLDER is read as MR, every volume of a 4D file by itself. For each volume and kind the table has the
1st, 50th and 99th percentile of the foreground in the network's values; Nyúl's standard scale is fitted to all volumes
that can be read. Look at it before a kind is chosen: a wrong one is seen here, not after a training.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fmct.errors import DataError, Refusal, told_to_the_user
from fmct.io import ReadPolicy, read_volume
from fmct.normalise import KINDS, Normalisation, fit_nyul
from fmct.volume import Volume

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
_SHOWN = (1, 50, 99)


@dataclass(frozen=True)
class Row:
    """One volume of a file. shape, spacing_mm: (z, y, x). values: {kind: percentiles of the foreground}. refused: why
    it was not read, or the first reason why it is not normalised, "" where every kind does it.
    """

    file: str
    frame: int | None
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    refused: str = ""


def volumes_of(path: Path, *, min_slices: int = 2) -> Iterator[tuple[int | None, Volume]]:
    """Yield (frame, volume) of every volume of a file read as MR; frame is None of a file with one. Raises Refusal."""
    policy = ReadPolicy(modalities=("MR",), min_slices=min_slices)
    try:
        yield None, read_volume(path, modality="MR", policy=policy)
        return
    except Refusal as refused:
        count = int(refused.numbers.get("volumes", 0)) if refused.code == "four-dimensional" else 0
        if not count:
            raise
    for frame in range(count):
        yield frame, read_volume(path, modality="MR", policy=replace(policy, frame=frame))


def normalisation_table(folder: Path) -> list[Row]:
    """Return a row for every volume of the MR files below a folder, in the order of their names. Raises DataError."""
    files = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(SUFFIXES))
    if not files:
        raise DataError(f"{folder}: no MR file there (expected one of {', '.join(SUFFIXES)}).")
    found: list[tuple[Row, Volume | None]] = []
    for path in files:
        name = str(path.relative_to(folder))
        try:
            for frame, volume in volumes_of(path):
                sides = tuple(round(float(side), 3) for side in volume.spacing)
                found.append((Row(name, frame, volume.shape, sides), volume))
        except Refusal as refused:
            found.append((Row(name, None, refused=f"{refused.code}: {refused.reason}"), None))
    kinds = _settings([volume for _, volume in found if volume is not None])
    return [row if volume is None else _normalised(row, volume, kinds) for row, volume in found]


def table_text(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, and below it why what was refused was."""
    lines = [f"| file | voxels | mm | {' | '.join(KINDS)} |", f"|---|---|---|{'---|' * len(KINDS)}"]
    reasons: list[str] = []
    for row in rows:
        name = row.file if row.frame is None else f"{row.file}, volume {row.frame}"
        shape, sides = ("×".join(f"{n:g}" for n in values) for values in (row.shape, row.spacing_mm))
        if row.refused:
            reasons.append(f"({len(reasons) + 1}) {name}: {row.refused}")
        cells = [
            " ".join(f"{value:.2f}" for value in row.values[kind])
            if kind in row.values
            else f"refused ({len(reasons)})"
            for kind in KINDS
        ]
        lines.append(f"| {name} | {shape} | {sides} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(["", *reasons] if reasons else [])])


def _settings(volumes: Sequence[Volume]) -> dict[str, Normalisation]:
    """Return each kind's settings; Nyúl's scale is of the volumes that are magnitudes, unfitted where none is."""
    kinds = {kind: Normalisation(kind) for kind in KINDS}
    insides = []
    for volume in volumes:
        try:
            insides.append(kinds["nyul"].inside(volume.voxels))
        except DataError:
            continue
    if insides:
        kinds["nyul"] = fit_nyul(insides, kinds["nyul"])
    return {kind: settings for kind, settings in kinds.items() if settings.ready}  # without magnitudes, no scale


def _normalised(row: Row, volume: Volume, kinds: dict[str, Normalisation]) -> Row:
    shown, reasons = {}, []
    for kind, settings in kinds.items():
        try:
            values = settings.fitted(volume.voxels).of_array(volume.voxels)
            inside = values[volume.voxels > volume.voxels.mean(dtype=np.float64)]
            shown[kind] = tuple(float(value) for value in np.percentile(inside, _SHOWN))
        except DataError as error:
            reasons.append(str(error))
    return replace(row, values=shown, refused="".join(reasons[:1]))


@told_to_the_user
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a folder; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fmct.lesions.normalisation_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of MR files")
    print(table_text(normalisation_table(parser.parse_args(arguments).folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

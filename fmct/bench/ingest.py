"""Taking a chest into a store on one core: read, pyramid and write apart, beside MONAI's usual way to the same end."""

import importlib.util
import os
import shutil
import statistics
import sys
import zlib
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from fmct.bench.figures import Figure
from fmct.bench.fresh import in_fresh_process
from fmct.bench.timing import Cost, copy_rate, cost_of
from fmct.bench.workbench import Workbench, write_nifti
from fmct.io import Candidate, ReadPolicy, discover
from fmct.pyramid import build as build_pyramid
from fmct.shapes import Triple
from fmct.store.ingest import IngestConfig
from fmct.store.take import Job, Taken, read_found, take

CHUNK: Triple = tuple(IngestConfig().chunk)  # type: ignore[assignment]


def bench_ingest(bench: Workbench) -> list[Figure]:
    """Return seconds of each stage beside floors, and how many times faster the whole is than MONAI's."""
    candidate = bench.candidates.get("chest")
    file = bench.folder / "chest.nii.gz"
    if candidate is None or candidate.format != "nifti":
        write_nifti(file, bench.volume("chest"))
    else:
        file = Path(candidate.paths[0])
    bench.say(f"ingest: {bench.sizes.ingest_repeats} × one series")
    ours = in_fresh_process(
        measure_ingest, threads=1, file=str(file), folder=str(bench.folder), repeats=bench.sizes.ingest_repeats
    )
    figures = _stage_figures(bench, ours)
    if importlib.util.find_spec("monai") is None:
        note = "MONAI is not installed, so there is nothing to compare with here. Install fmct[tasks] and run again."
        return [*figures[:-1], _with_note(figures[-1], note)]
    bench.say("ingest: MONAI's load, orient, resample, save")
    theirs = in_fresh_process(measure_monai, threads=1, file=str(file), folder=str(bench.folder))
    told = {"ours_s": ours["whole"]["cpu"], "wall_ratio": theirs["wall"] / ours["whole"]["wall"]}
    told_of_theirs = {"wall_s": theirs["wall"], "saved": theirs["saved"], "shape_xyz": theirs["shape"]}
    seconds = theirs["cpu"]
    says = "MONAI: load, orient, resample to 1 mm (order 3), save"
    ratio = seconds / ours["whole"]["cpu"]
    return [
        *figures,
        Figure("ingest/monai", says, seconds, "s", details=told_of_theirs),
        Figure(
            "ingest/monai_ratio", "MONAI's seconds to ours", ratio, "×", details=told, judged=bench.sizes.comparable
        ),
    ]


def measure_ingest(*, file: str, folder: str, repeats: int) -> dict[str, Any]:
    """Return seconds of a series' way into a store, by stage (wall) and whole, and those of its floors, on one core."""
    candidate = next(item for item in discover([file]) if isinstance(item, Candidate))
    read = partial(read_found, candidate, ReadPolicy())
    store = Path(folder) / "ingest-bench"
    whole, stages, taken = [], [], None
    for number in range(-1, repeats):  # the first warms the page cache and the libraries
        store.mkdir()
        config = IngestConfig()
        job = Job("series", "patient", str(store), read, recipe="bench", chunk=CHUNK, codec=config.codec)
        done: list[Any] = []
        cost = cost_of(lambda j=job, d=done: d.append(take(j)))
        taken = done[0]
        assert isinstance(taken, Taken), f"a series that was read before is refused: {taken}"
        shutil.rmtree(store)
        if number >= 0:
            whole.append(cost)
            stages.append(taken.seconds)
    assert taken is not None
    volume = read()
    content = Path(file).read_bytes()
    levels = [voxels.nbytes for _, voxels in build_pyramid(volume.voxels, volume.spacing.tolist())]
    rate = copy_rate(volume.voxels.nbytes)
    inflate = (
        (lambda: zlib.decompress(content, wbits=31)) if content[:2] == b"\x1f\x8b" else (lambda: bytearray(content))
    )
    return {
        "whole": vars(_median(whole)),
        "stages": {stage: statistics.median(s[stage] for s in stages) for stage in stages[0]},
        "floors": {
            "read": min(cost_of(inflate).cpu for _ in range(3)),
            "pyramid": sum(fine + coarse for fine, coarse in pairwise(levels)) / rate,
            "write": (sum(levels) + taken.entry.bytes) / rate,
        },
        "shape": list(volume.shape),
        "mb_int16": volume.voxels.nbytes / 1e6,
        "mb_file": len(content) / 1e6,
        "mb_stored": taken.entry.bytes / 1e6,
    }


def measure_monai(*, file: str, folder: str) -> dict[str, Any]:
    """Return the seconds of LoadImage → Orientation → Spacing(1 mm, order 3) → save, once, on one core."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        stdout, sys.stdout = sys.stdout, nowhere
        try:
            from monai.transforms.compose import Compose
            from monai.transforms.io.array import LoadImage, SaveImage
            from monai.transforms.spatial.array import Orientation, Spacing

            torch.set_num_threads(1)
            target = Path(folder) / "monai-bench"
            path = Compose(
                [
                    LoadImage(image_only=True, ensure_channel_first=True),
                    Orientation("RAS"),
                    Spacing((1.0, 1.0, 1.0), mode=3),  # type: ignore[arg-type]
                    SaveImage(str(target), output_ext=".nii", separate_folder=False, print_log=False),
                ]
            )
            made: list[Any] = []
            cost = cost_of(lambda: made.append(path(file)))
        finally:
            sys.stdout = stdout
    shutil.rmtree(target)
    return {**vars(cost), "shape": list(made[0].shape[1:]), "saved": "float32 NIfTI, uncompressed"}


def _stage_figures(bench: Workbench, ours: dict[str, Any]) -> list[Figure]:
    floors = {
        "read": "inflating the file once with zlib",
        "pyramid": "bytes of all levels at the copy rate",
        "write": "bytes of all levels, plain and compressed, at the copy rate",
    }
    figures = [
        Figure(
            f"ingest/{stage}",
            f"ingest: {stage} (on the wall)",
            seconds,
            "s",
            ours["floors"].get(stage),
            floors.get(stage, ""),
        )
        for stage, seconds in ours["stages"].items()
    ]
    facts = {key: ours[key] for key in ("shape", "mb_int16", "mb_file", "mb_stored")}
    details = {**facts, "scan": bench.describe("chest"), "wall_s": ours["whole"]["wall"]}
    whole, floor = ours["whole"]["cpu"], sum(ours["floors"].values())
    return [*figures, Figure("ingest/whole", "ingest: the whole", whole, "s", floor, "their sum", details=details)]


def _median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(c.cpu for c in costs), statistics.median(c.wall for c in costs))


def _with_note(figure: Figure, note: str) -> Figure:
    return Figure(**{**vars(figure), "note": note})

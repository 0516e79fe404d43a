"""Peak memory: of an ingest worker, of a loader worker, of a training step."""

import numpy as np

from fmct.bench.figures import Figure
from fmct.bench.footprint_ingest import ingest_footprint
from fmct.bench.footprint_loader import loader_footprint
from fmct.bench.fresh import in_fresh_process
from fmct.bench.step import memory_figures
from fmct.bench.workbench import Workbench, write_nifti
from fmct.volume import Volume

LOADER_WORKERS = 2


def bench_memory(bench: Workbench) -> list[Figure]:
    """Return the peaks, each of a process of its own."""
    return [_ingest(bench), _loader(bench), *memory_figures(bench)]


def _ingest(bench: Workbench) -> Figure:
    chest = bench.volume("chest")
    slices = bench.sizes.series_slices
    bench.say(f"memory: ingest of a series of {slices} slices")
    repeated = np.tile(chest.voxels, (-(-slices // len(chest.voxels)), 1, 1))[:slices]
    file = bench.folder / "long.nii.gz"
    write_nifti(file, Volume(repeated, chest.affine))
    del repeated
    store = bench.folder / "memory-bench"
    store.mkdir(exist_ok=True)
    found = in_fresh_process(ingest_footprint, threads=1, file=str(file), folder=str(store))
    file.unlink()
    size = found["int16"]
    details = {
        "shape": found["shape"],
        "peak_mb": found["peak"] / 1e6,
        "int16_mb": size / 1e6,
        "before_mb": found["before"] / 1e6,
        "growth": (found["peak"] - found["before"]) / size,
    }
    says = f"ingest worker, {' × '.join(map(str, found['shape']))} NIfTI, libraries included"
    floor_is = "the voxels once, and the libraries"
    value, floor = found["peak"] / size, (found["before"] + size) / size
    return Figure(
        "memory/ingest", says, value, "× int16 size", floor, floor_is, details=details, judged=bench.sizes.comparable
    )


def _loader(bench: Workbench) -> Figure:
    sizes = bench.sizes
    bench.say(f"memory: loader workers, {sizes.loader_batch} samples a batch")
    found = in_fresh_process(
        loader_footprint,
        threads=1,
        recipe=sizes.store_recipe,
        store=str(bench.store_path),
        batch=sizes.loader_batch,
        batches=sizes.loader_batches,
        workers=LOADER_WORKERS,
    )
    peaks = found["workers"] or [found["main"]]
    note = "" if found["workers"] else "This system does not show other processes' memory: this is the whole loader's."
    details = {
        "workers_mb": [peak / 1e6 for peak in peaks],
        "shared_mb": [shared / 1e6 for shared in found["shared"]],
        "main_mb": found["main"] / 1e6,
        "batch": found["batch"],
        "prefetch": found["prefetch"],
        "recipe": sizes.store_recipe,
    }
    says = f"loader worker, {sizes.store_recipe}, batches of {found['batch']}"
    return Figure("memory/loader_worker", says, max(peaks) / 1e6, "MB", note=note, details=details)

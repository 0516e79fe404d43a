"""Reading all crops of a training sample: one thread, page cache, beside a raw decode of the same chunks."""

import statistics
from functools import partial

import torch

from fmct.bench.figures import Figure
from fmct.bench.timing import copy_rate, cost_of, median_ms, spread_ms
from fmct.bench.workbench import PARTS, Workbench, recipe_config
from fmct.data.crops import read_coarse
from fmct.data.view_config import ViewsConfig
from fmct.data.views import ViewParameters, sample_parameters
from fmct.store import Store
from fmct.store.floor import Box, compressed_chunks, raw_decode_s
from fmct.store.manifest import Entry
from fmct.threads import torch_threads


def bench_store(bench: Workbench) -> list[Figure]:
    """Return, for head and chest, the cost of a sample's crops and its ratio to decoding the same chunks bare."""
    views = recipe_config(bench.sizes.store_recipe, ["store=unused"])[1].views
    figures: list[Figure] = []
    with torch_threads(1):
        for part in PARTS:
            bench.say(f"store: {bench.sizes.store_samples} samples of the {part}")
            with bench.store() as store:
                figures += _read_part(bench, store, part, views)
    return figures


def _read_part(bench: Workbench, store: Store, part: str, views: ViewsConfig) -> list[Figure]:
    entry = bench.entry_of(store, part)
    coarse = read_coarse(store, entry, views)
    samples = [sample_parameters(views, entry, coarse, seed=0, draw=d) for d in range(bench.sizes.store_samples)]
    boxes: list[list[Box]] = [[(view.level, view.start, view.shape) for view in sample] for sample in samples]

    first = [
        cost_of(partial(_read, store, entry, b)) for b in boxes
    ]  # opens files, checks checksums, fills the page cache
    again, decodes, in_memory = [], [], []
    for crops in boxes:
        again.append(cost_of(partial(_read, store, entry, crops)))
        decodes.append(1e3 * raw_decode_s(store, entry, crops, from_file=True))
        in_memory.append(1e3 * raw_decode_s(store, entry, crops))
    ours, decode = median_ms(again), statistics.median(decodes)
    size = statistics.median(sum(_voxels(box) * 2 for box in crops) for crops in boxes)
    details = spread_ms(again) | {
        "scan": bench.describe(part),
        "views": f"{views.global_views.count} global, {views.local_views.count} local, of {bench.sizes.store_recipe}",
        "mb_of_crops": size / 1e6,
        "chunks": statistics.median(len(compressed_chunks(store, entry, crops)) for crops in boxes),
        "decode_in_memory_ms": statistics.median(in_memory),
        "copy_ms": 1e3 * size * 2 / copy_rate(int(size)),
        "first_read_ms": median_ms(first),
        "coarsest_level_to_view_spacing": max(_coarseness(entry, view) for sample in samples for view in sample),
        "codec": store.record["codec"],
        "chunk": store.record["chunk"],
    }
    says = f"the crops of a sample of the {part}"
    floor_is = "raw decode of the same chunks from the page cache"
    ratio = ours / decode
    return [
        Figure(f"store/{part}", f"{says}, median", ours, "ms", decode, floor_is, details=details),
        Figure(f"store/{part}/p95", f"{says}, 95th percentile", details["p95_ms"], "ms"),
        Figure(f"store/{part}/ratio", f"{says}, to a raw decode", ratio, "×", 1.0, floor_is),
    ]


def _read(store: Store, entry: Entry, crops: list[Box]) -> None:
    for level, start, shape in crops:
        store.read(entry, level, start, shape)


def _voxels(box: Box) -> int:
    return int(torch.Size(box[2]).numel())


def _coarseness(entry: Entry, view: ViewParameters) -> float:
    """Return the largest ratio over axes of the level's spacing to the view's, below level 0's own: ≤ 1.05 by rule."""
    level = entry.levels[view.level]
    wanted = [abs(step) * spacing for step, spacing in zip(view.step, level.spacing_mm, strict=True)]
    pairs = zip(level.factor, level.spacing_mm, wanted, strict=True)
    return max((spacing / want for factor, spacing, want in pairs if factor > 1), default=0.0)

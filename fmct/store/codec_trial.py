"""Which chunk shape and codec? Measured on given volumes; the figures go into every store's record.

    python -m fmct.store.codec_trial VOLUME.nii.gz … [--write]

prints a table and, with --write, replaces the figures that the package carries.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import read_json, write_json
from fmct.pyramid import build as build_pyramid
from fmct.shapes import Triple
from fmct.store import hdf5
from fmct.store.codec import codecs

FIGURES = Path(__file__).with_name("codec_trial.json")
FORMAT = ("fmct-codec-trial", "1.0")
CHUNKS: tuple[Triple, ...] = ((16, 32, 32), (32, 32, 32), (16, 48, 48), (48, 48, 48), (64, 64, 64))
CROPS = ((2, 112), (8, 48))  # how many crops of which side, one training sample
SAMPLES = 8
WRITE_MS_PER_MB = 10.0  # a slower codec would cost an ingest more than reading the scans does
CONCLUSION = (
    "among those that save a quarter of the space and write a megabyte in 10 ms or less: the smallest (to 1 %), "
    "then the one of fewest chunks, whose read is within 5 % of the fastest; one thread, processor time, warm cache"
)


@dataclass(frozen=True)
class Figure:
    """One candidate: size relative to int16, median processor milliseconds to read the crops of one sample."""

    codec: str
    chunk: Triple
    relative_size: float
    read_ms: float
    write_ms_per_mb: float


def measure(volumes: Sequence[np.ndarray], codec: str, chunk: Triple) -> Figure:
    """Return the figures of one candidate on int16 volumes, every level of their pyramid stored, page cache warm."""
    from fmct.store.reader import Store

    stored = native = 0
    write_s, samples = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "store.json", "fmct-store", "1.0", {"codec": codec})
        for number, voxels in enumerate(volumes):
            levels = [level for _, level in build_pyramid(voxels, (1.0, 1.0, 1.0))]
            began = time.process_time()
            path = Path(folder) / f"{number}.h5"
            stored += hdf5.write_part(path, str(number), levels, "{}", chunk=chunk, codec=codec)
            write_s += time.process_time() - began
            native += voxels.nbytes
            store, entry = Store(folder), _entry(str(number), path.name, levels)
            for _ in range(2):  # the first pass warms the cache
                times = [_read_sample(store, entry, np.random.default_rng(seed)) for seed in range(SAMPLES)]
            samples += times
            store.close()
    return Figure(codec, chunk, stored / native, 1e3 * statistics.median(samples), 1e3 * write_s / (native / 1e6))


def trial(volumes: Sequence[np.ndarray]) -> list[Figure]:
    """Return the figures of every codec at 32³ and of every chunk shape with the codec that reads fastest there."""
    figures = [measure(volumes, codec, (32, 32, 32)) for codec in codecs()]
    best = choose(figures).codec
    return figures + [measure(volumes, best, chunk) for chunk in CHUNKS if chunk != (32, 32, 32)]


def choose(figures: Sequence[Figure]) -> Figure:
    """Return the figure that CONCLUSION describes."""
    saving = [f for f in figures if f.relative_size < 0.75 and f.write_ms_per_mb <= WRITE_MS_PER_MB]
    fastest = min(f.read_ms for f in saving)
    return min(
        (f for f in saving if f.read_ms <= 1.05 * fastest),
        key=lambda f: (round(f.relative_size, 2), -math.prod(f.chunk)),
    )


def reason(codec: str, chunk: Sequence[int]) -> dict[str, Any]:
    """Return what a store's record says of its choice: the figures measured for it and for the alternatives."""
    carried = read_json(FIGURES, *FORMAT)
    chosen = carried["chosen"] == [codec, list(chunk)]
    return {**carried, "conclusion": carried["conclusion"] if chosen else "asked for by the configuration"}


def _entry(name: str, shard: str, levels: Sequence[np.ndarray]) -> Any:
    from fmct.store.manifest import Entry, Level

    unit = (1.0, 1.0, 1.0)
    shapes = [tuple(int(n) for n in level.shape) for level in levels]
    described = tuple(Level((1, 1, 1), shape, unit) for shape in shapes)  # type: ignore[arg-type]
    return Entry(name, "", "CT", "HU", shapes[0], unit, (), (), (0.0, 0.0), "", "", described, shard)  # type: ignore[arg-type]


def _read_sample(store: Any, entry: Any, generator: np.random.Generator) -> float:
    boxes = []
    for count, side in CROPS:
        size = tuple(min(side, n) for n in entry.shape)
        for _ in range(count):
            boxes.append(
                (tuple(int(generator.integers(0, n - s + 1)) for n, s in zip(entry.shape, size, strict=True)), size)
            )
    began = time.process_time()
    for start, size in boxes:
        store.read(entry, 0, start, size)
    return time.process_time() - began


def main() -> None:
    """Measure on the given files, print a table, and write the figures when asked to."""
    from fmct.io import read_volume

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="+")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    volumes = [read_volume(path).voxels for path in arguments.volumes]
    figures = trial(volumes)
    for f in sorted(figures, key=lambda f: f.read_ms):
        figures_of_one = f"size {f.relative_size:.3f}  read {f.read_ms:6.2f} ms  write {f.write_ms_per_mb:5.2f} ms/MB"
        print(f"{f.codec:24} {f.chunk!s:14} {figures_of_one}")
    if arguments.write:
        best = choose(figures)
        payload = {
            "chosen": [best.codec, list(best.chunk)],
            "conclusion": CONCLUSION,
            "measured_on": [{"shape": list(v.shape), "modality": "CT"} for v in volumes],
            "sample": [{"crops": count, "side": side} for count, side in CROPS],
            "figures": [{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(f).items()} for f in figures],
        }
        print(json.dumps(payload["chosen"]))
        write_json(FIGURES, *FORMAT, payload)


if __name__ == "__main__":
    main()

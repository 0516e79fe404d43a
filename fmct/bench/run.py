"""Runs benches one after the other and gathers their figures into one stamped JSON."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmct.artefacts import stamped, write_json
from fmct.bench.contrast import bench_contrast
from fmct.bench.figures import Figure, table
from fmct.bench.finetune import bench_finetune
from fmct.bench.fresh import MeasurementFailed
from fmct.bench.gate import bench_gate
from fmct.bench.ingest import bench_ingest
from fmct.bench.lesions import bench_lesions
from fmct.bench.machine import load_average, machine_facts
from fmct.bench.memory import bench_memory
from fmct.bench.phantoms import bench_phantoms
from fmct.bench.predict import bench_predict
from fmct.bench.step import bench_step
from fmct.bench.store import bench_store
from fmct.bench.views import bench_views
from fmct.bench.workbench import FULL, QUICK, Sizes, Workbench
from fmct.cores import available_cores
from fmct.errors import ConfigError

FORMAT = ("fmct-bench", "1.0")
BENCHES: dict[str, Callable[[Workbench], list[Figure]]] = {
    "gate": bench_gate,
    "views": bench_views,
    "store": bench_store,
    "ingest": bench_ingest,
    "step": bench_step,
    "finetune": bench_finetune,
    "predict": bench_predict,
    "memory": bench_memory,
    "lesions": bench_lesions,
    "phantoms": bench_phantoms,
    "contrast": bench_contrast,
}


def run_benches(
    names: Sequence[str],
    *,
    data: str = "",
    quick: bool = False,
    threads: int = 0,
    output: str = "",
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Run the named benches (`all`, or none: every one), print their table to standard error, return the JSON.

    threads: of the training step, 0 for every core. output: where to write the JSON. A bench whose process dies is
    named under `failed`, and the others go on. Raises ConfigError for an unknown name or an output that cannot be,
    before anything is measured.
    """
    chosen = _chosen(names)
    if output and not Path(output).absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: the folder does not exist. Make it first.")
    threads = threads or available_cores()
    machine = machine_facts(threads)
    loads, seconds, failed = [load_average()], {}, []
    figures: list[Figure] = []
    say = _Clock()
    with tempfile.TemporaryDirectory(prefix="fmct-bench-") as folder:
        bench = Workbench(Path(folder), sizes or (QUICK if quick else FULL), data=data, threads=threads, say=say)
        for name in chosen:
            say(name)
            start = time.perf_counter()
            try:
                figures += BENCHES[name](bench)
            except MeasurementFailed as error:  # what the others found in minutes is not thrown away
                failed.append(name)
                say(f"{name} FAILED: {error}")
            seconds[name] = round(time.perf_counter() - start, 1)
            loads.append(load_average())
    figures = list({figure.name: figure for figure in figures}.values())  # a step's memory is shown by two benches
    content = {
        "machine": machine,
        "quick": quick,
        "data": "real" if data else "phantom",
        "seconds": seconds,
        "load_averages": loads,
        "failed": failed,
        "figures": [figure.to_dict() for figure in figures],
    }
    print(table(figures), file=sys.stderr)
    if loads[0] and loads[0][0] > 0.5 * machine["cores"]:
        print(
            f"\nThe machine was busy before this began (load {loads[0][0]}): times are not its best.", file=sys.stderr
        )
    if output:
        write_json(Path(output), *FORMAT, content)
    return stamped(*FORMAT, content)


class _Clock:
    """Prints progress behind the seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def __call__(self, text: str) -> None:
        print(f"[{time.perf_counter() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)


def to_text(content: dict[str, Any]) -> str:
    """Return the JSON as text."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _chosen(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in BENCHES and name != "all"]
    if unknown:
        raise ConfigError(f"no bench {unknown[0]!r}; expected all, or some of {', '.join(BENCHES)}.")
    return [name for name in BENCHES if not names or "all" in names or name in names]

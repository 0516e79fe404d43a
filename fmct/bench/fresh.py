"""Measurements in a process of their own, so that nothing else is in its memory.

    python -m fmct.bench.fresh MODULE FUNCTION '{"argument": …}'

prints the JSON that the function returns, behind a marker line.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fmct.errors import FmctError


class MeasurementFailed(FmctError):
    """A measurement's process ended without a result: too little memory, or a fault of the bench."""

    exit_code = 1


_MARK = "fmct-bench-result:"
_ROOM = "fmct.bench."


def in_fresh_process(function: Callable[..., dict[str, Any]], *, threads: int, **arguments: Any) -> dict[str, Any]:
    """Return what a module-level function of this room returns when a new process calls it with JSON `arguments`.

    threads: of its matrix products. Raises MeasurementFailed with the end of what it printed.
    """
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "fmct.bench.fresh", function.__module__, function.__name__, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode != 0 or not lines:
        told = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-12:])
        raise MeasurementFailed(f"a measurement ({function.__name__}) ended with code {done.returncode}:\n{told}")
    return json.loads(lines[-1].removeprefix(_MARK))


def main(words: list[str]) -> None:
    """Call the named function and print what it returns."""
    module, name, arguments = words
    assert module.startswith(_ROOM), f"{module} is not a module of benches"
    logging.disable(logging.WARNING)  # here, where it ends with the process
    result = getattr(import_module(module), name)(**json.loads(arguments))
    print(_MARK + json.dumps(result, allow_nan=False), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

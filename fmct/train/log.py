"""What a run writes while it trains: metrics.jsonl, timing.jsonl, events.jsonl, and progress on the terminal.

`metrics.jsonl` holds only values that are functions of the run, so that a resumed run writes the same bytes as an
unbroken one: on resume it is cut back to the restored step. `timing.jsonl` and `events.jsonl` (skipped updates,
alarms, saves that failed, resumes) are appended to.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fmct.artefacts import write_bytes
from fmct.residence import peak_resident
from fmct.train.engine import Update

METRICS, TIMING, EVENTS = "metrics.jsonl", "timing.jsonl", "events.jsonl"


def training_seconds(folder: Path) -> float:
    """Return the seconds of all steps of a run, whatever number of calls it took; a step done twice counts twice."""
    lines = (folder / TIMING).read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may leave half a line
    return sum(row["seconds"] or 0.0 for row in rows)


def truncate_after(path: Path, step: int) -> int:
    """Cut a JSON-lines file back to lines whose `step` is at most `step`; return the number of lines removed.

    A last line without its end, as a kill leaves it, goes too.
    """
    if not path.is_file():
        return 0
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]
    if len(kept) < len(lines):
        write_bytes(path, b"".join(kept))
    return len(lines) - len(kept)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: the GPU allocator's, or this process's resident set on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


class RunLog:
    """Writes a run's logs from rank 0; on the other ranks every call does nothing.

    flops_per_volume and peak_flops (of all ranks) turn the rate into `mfu`, the share of the best square product.
    interval_s: seconds between progress lines where standard error is no terminal. on_step is called at each step.
    """

    def __init__(
        self,
        folder: Path,
        *,
        until: int,
        device: torch.device,
        enabled: bool = True,
        flops_per_volume: float | None = None,
        peak_flops: float | None = None,
        interval_s: float = 30.0,
        terminal: bool | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self.folder, self.until, self.device, self.enabled = folder, until, device, enabled
        self._share = flops_per_volume / peak_flops if flops_per_volume and peak_flops else None
        self._interval_s = interval_s
        self._on_step = on_step
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._files = {name: (folder / name).open("a", encoding="utf-8") for name in self._names()}
        self._last = self._start = time.perf_counter()
        self._printed = -math.inf
        self._first_step: int | None = None
        self._waited = 0.0
        self._wait_since_print = 0.0
        self._print_from = self._start

    def _names(self) -> tuple[str, ...]:
        return (METRICS, TIMING, EVENTS) if self.enabled else ()

    def waited(self, seconds: float) -> None:
        """Count time that training stood still for data."""
        self._waited += seconds
        self._wait_since_print += seconds

    def step(self, step: int, update: Update, values: Mapping[str, float], *, volumes: int, skipped: int) -> None:
        """Write the lines of an applied update; `step` counts it, `volumes` went into it over all ranks."""
        now = time.perf_counter()
        duration, self._last = now - self._last, now
        wait, self._waited = self._waited, 0.0
        if not self.enabled:
            return
        if self._on_step is not None:
            self._on_step()
        row = {"step": step, "loss": update.loss}
        row.update({f"loss/{name}": value for name, value in update.terms.items()})
        row.update(values)
        row["grad_norm"] = update.grad_norm
        row.update({f"grad_norm/{name}": value for name, value in update.grad_norms.items()})
        row.update(update.health)
        row["skipped"] = skipped
        self._write(METRICS, row)
        rate = volumes / duration
        timing = {"step": step, "volumes_per_second": rate, "mfu": rate * self._share if self._share else None}
        timing |= {"data_wait": wait / duration, "seconds": duration, "memory": peak_memory(self.device)}
        self._write(TIMING, timing)
        self._progress(now, step, row, rate, update.health)

    def event(self, name: str, **facts: Any) -> None:
        """Append a line to events.jsonl."""
        self._write(EVENTS, {"event": name, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts})

    def say(self, text: str) -> None:
        """Print a line to standard error from rank 0, off the progress line."""
        if self.enabled:
            print(f"\r\033[K{text}" if self._terminal else text, file=sys.stderr, flush=True)

    def sync(self) -> None:
        """Flush the metrics to disk, before a checkpoint that a resume may return to is committed."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        if self._terminal and self.enabled and self._first_step is not None:
            print(file=sys.stderr)
        for file in self._files.values():
            file.close()

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        if self.enabled:
            self._files[name].write(json.dumps(_finite(row), allow_nan=False) + "\n")
            self._files[name].flush()

    def _progress(
        self, now: float, step: int, row: Mapping[str, Any], rate: float, health: Mapping[str, float]
    ) -> None:
        if self._first_step is None:
            self._first_step = step - 1
        if step < self.until and now - self._printed < (0.2 if self._terminal else self._interval_s):
            return
        self._printed = now
        done = step - self._first_step
        left = (self.until - step) * (now - self._start) / done
        wait = self._wait_since_print / max(now - self._print_from, 1e-9)
        self._wait_since_print, self._print_from = 0.0, now
        parts = [
            f"step {step}/{self.until}",
            f"loss {row['loss']:.4f}",
            f"lr {row['learning_rate']:.2e}",
            f"grad {row['grad_norm']:.2f}",
            f"{rate:.1f} volumes/s",
            f"data wait {100 * wait:.0f} %",
            *(f"{name} {value:.3g}" for name, value in list(health.items())[:3]),
            f"{format_duration(left)} left",
        ]
        text = " · ".join(parts)
        if self._terminal:
            width = _terminal_width()
            filled = round(20 * step / self.until)
            print(f"\r\033[K{('━' * filled).ljust(20, '─')} {text}"[: width + 4], end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Return a duration such as `3 h 05 min`, `4 min 10 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _finite(value: Any) -> Any:
    """Return a JSON value with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 120


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        return math.inf

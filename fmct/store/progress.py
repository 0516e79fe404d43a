"""Progress of a long job: a bar with rate and time left on a terminal, one line every few seconds elsewhere."""

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter(Protocol):
    """Told of every finished item."""

    def start(self, total: int) -> None:
        """Hear how many items there are."""
        ...

    def advance(self, note: str) -> None:
        """Hear that one more item is done; `note` says how the job stands."""
        ...

    def close(self) -> None:
        """Hear that the job ended."""
        ...


class Silent:
    """Reports nothing."""

    def start(self, total: int) -> None:
        """Ignore the total."""

    def advance(self, note: str) -> None:
        """Ignore the item."""

    def close(self) -> None:
        """Ignore the end."""


class Lines:
    """One line every `every_s` seconds, and one at the end: for logs."""

    def __init__(self, every_s: float, stream: TextIO) -> None:
        self._every_s, self._stream = every_s, stream
        self._total = self._done = self._told = 0
        self._note = ""
        self._began = self._last = time.monotonic()

    def start(self, total: int) -> None:
        """Begin to count."""
        self._total, self._began = total, time.monotonic()
        self._last = self._began
        print(f"{total} series to read", file=self._stream, flush=True)

    def advance(self, note: str) -> None:
        """Count one item and print when it is time."""
        self._done, self._note = self._done + 1, note
        if time.monotonic() - self._last >= self._every_s:
            self._print()

    def close(self) -> None:
        """Print the last line, unless it stands there already."""
        if self._done > self._told:
            self._print()

    def _print(self) -> None:
        self._last, self._told = time.monotonic(), self._done
        rate = self._done / max(self._last - self._began, 1e-9)
        left = (self._total - self._done) / rate
        text = f"{self._done}/{self._total} series, {self._note}, {rate:.2f} series/s, {_clock(left)} left"
        print(text, file=self._stream, flush=True)


class Bar:
    """A bar for terminals."""

    def __init__(self, stream: TextIO, doing: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(file=stream))
        self._task = self._progress.add_task("finding scans", total=None, rate="")
        self._doing, self._began = doing, time.monotonic()
        self._progress.start()

    def start(self, total: int) -> None:
        """Show the empty bar."""
        self._began = time.monotonic()
        self._progress.update(self._task, total=total, description=self._doing)

    def advance(self, note: str) -> None:
        """Move the bar by one item."""
        self._progress.advance(self._task)
        rate = self._progress.tasks[0].completed / max(time.monotonic() - self._began, 1e-9)
        self._progress.update(self._task, rate=f"{rate:.2f} series/s, {note}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()


def reporter(every_s: float, stream: TextIO | None = None, *, doing: str = "ingest") -> Reporter:
    """Return a bar, named by what is being done, when `stream` (standard error) is a terminal, else lines."""
    target: TextIO = stream or sys.stderr
    return Bar(target, doing) if target.isatty() else Lines(every_s, target)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"

"""Signals: the first asks training to save and stop at the next step, the second ends the process at once."""

import os
import signal
import time
from types import FrameType, TracebackType

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """A context in which SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 only set `requested`.

    Nothing else happens inside a handler: the loop reads the flag at a step boundary and the ranks agree. A second
    signal takes its default action: the process ends at once, and the last committed checkpoint is what is left.
    Signals within `settle_s` seconds of the first count as the first: launchers and schedulers repeat them.
    """

    def __init__(self, *, settle_s: float = 1.0) -> None:
        self.requested = False
        self.name = ""
        self._settle_s = settle_s
        self._since = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in HANDLED:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and now - self._since > self._settle_s:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.requested:
            self.requested, self._since, self.name = True, now, signal.Signals(number).name

"""The errors that a user can cause and mend, as one tree.

FmctError                     one paragraph on stderr, exit code 2, no traceback
├── ConfigError               a key, value or file of a configuration
├── DataError                 a scan, store, label file or split
│   ├── Refusal               a scan not taken, with a stable code and its numbers
│   └── GeometryError         a grid that cannot be what it says
├── ArtefactError             a checkpoint, run or encoder folder that is not whole
│   ├── CheckpointError
│   └── WeightsError          tensors missing, unexpected or of another shape
└── TrainingStopped           training ended on purpose; carries its own exit code
"""

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")


class FmctError(Exception):
    """A mistake that the user can mend. The text says what was expected, what came, and what to do next."""

    exit_code = 2


class ConfigError(FmctError):
    """A configuration file, key or value is not usable."""


class DataError(FmctError):
    """A scan, a store or a table is not usable."""


class GeometryError(DataError):
    """A voxel grid has an impossible or inconsistent geometry."""


class Refusal(DataError):
    """A scan is not taken. `code` is stable (scripts may match it), `numbers` hold what was measured."""

    def __init__(self, code: str, reason: str, numbers: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.numbers: dict[str, Any] = dict(numbers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the constructor call, so that a refusal survives the way back from a worker process."""
        return Refusal, (self.code, self.reason, self.numbers)


class ArtefactError(FmctError):
    """A folder or file that fmct wrote is incomplete, altered or from an unknown version."""


class CheckpointError(ArtefactError):
    """No checkpoint, or none that verifies."""


class WeightsError(ArtefactError):
    """Weights do not fit the model: names the tensors that are missing, unexpected or of another shape."""


class TrainingStopped(FmctError):
    """Training ended on purpose before its last step; `exit_code` tells schedulers why."""

    def __init__(self, text: str, *, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again
EXIT_NON_FINITE = 76
EXIT_COLLAPSED = 77


def told_to_the_user(main: Callable[P, int]) -> Callable[P, int]:
    """Return `main` with mistakes of the user's told on stderr, and their exit code returned: for `python -m`."""

    @wraps(main)
    def _told(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except FmctError as error:
            print(error, file=sys.stderr)
            return error.exit_code

    return _told

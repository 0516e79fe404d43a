"""How much memory a process holds. Imports nothing that would be counted."""

import resource
import sys
from pathlib import Path


def peak_resident(pid: int | str = "self") -> int:
    """Return the most bytes that a process held in memory so far, 0 for one that is gone or cannot be looked at.

    Of its own program only, on Linux. Elsewhere this process's own count, which may hold that of the one that started
    it.
    """
    return _status_bytes(pid, "VmHWM") or (_largest_so_far() if pid == "self" else 0)


def resident(pid: int | str = "self") -> int:
    """Return the bytes that a process holds in memory now; the same exceptions."""
    return _status_bytes(pid, "VmRSS") or (_largest_so_far() if pid == "self" else 0)


def _largest_so_far() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _status_bytes(pid: int | str, key: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key}:")), 0)

"""How many cores there are for this process."""

import os


def available_cores() -> int:
    """Return the cores that this process may run on: those a scheduler left to it, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""The C library's memory: freed blocks kept for the next tensor instead of given back to the system."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep memory that it freed, and return whether its C library (glibc) took that in.

    Activations at full resolution are tens of megabytes each; glibc asks the system for such blocks anew every time,
    and a quarter of a convolutional decoder's time on a CPU is then page faults; of a training step of ViT-S a tenth.
    For a process of its own, such as a verb: what it once used stays its own until it ends.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))

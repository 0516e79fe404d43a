"""What a process on a CPU keeps: freed memory, for the next tensor, and a bounded number of oneDNN's kernels."""

import ctypes
import os
import sys

_KERNELS = 256  # a network has some sixty shapes of products; see bound_kernels
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = -1  # as its manual says; a large number would still give memory back above 2 GB


def tune_memory() -> None:
    """Do both of the below: for a process of its own that trains or predicts on a CPU, before it computes anything."""
    keep_freed_memory()
    bound_kernels()


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


def bound_kernels() -> None:
    """Let oneDNN keep 256 compiled products and convolutions, not 1024, unless the environment says how many.

    One is kept for every shape that ever came, and in bf16 each holds some 3 MB: a pretraining process whose batches
    differ in their shapes grew by 15 MB an update, up to 3 GB. Call it before the first product is computed.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))

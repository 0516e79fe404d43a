"""Rows taken a few at a time, so that on a CPU what is computed of them stays in its caches.

A head has tens of thousands of prototypes, and its (M, K) logits are a hundred megabytes: every temporary of that size
is read from memory, written to memory, and on a CPU also mapped page by page. Accelerators take all rows at once.
"""

from collections.abc import Iterator

from torch import Tensor

BLOCK = 1 << 19  # elements; 2 MB of fp32, about what a core's second-level cache holds


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Yield slices that cover the rows of an (M, K) tensor in order; one for all of them on an accelerator."""
    count, width = rows.shape
    step = max(1, BLOCK // max(1, width)) if rows.device.type == "cpu" else max(1, count)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))

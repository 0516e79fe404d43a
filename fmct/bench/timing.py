"""Clocks, repeats and medians."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cost:
    """Seconds of one call: of the processor (all threads together) and of the clock on the wall."""

    cpu: float
    wall: float


def cost_of(call: Callable[[], object]) -> Cost:
    """Return what one call costs."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def median_ms(costs: Sequence[Cost]) -> float:
    """Return the median processor time in ms: on a busy machine it says more of one thread's work than the wall."""
    return 1e3 * statistics.median(cost.cpu for cost in costs)


def spread_ms(costs: Sequence[Cost]) -> dict[str, float]:
    """Return median and 95th percentile of processor time, and the median on the wall, in ms, with their number."""
    return {
        "median_ms": median_ms(costs),
        "p95_ms": 1e3 * float(np.percentile([cost.cpu for cost in costs], 95)),
        "wall_median_ms": 1e3 * statistics.median(cost.wall for cost in costs),
        "samples": len(costs),
    }


def copy_rate(size: int) -> float:
    """Return the bytes, read and written together, that one thread moves in a second when it copies `size` bytes.

    The best of several: it is a floor. The buffers are in use, so that no page fault counts.
    """
    source, target = np.ones(max(size, 1), dtype=np.uint8), np.ones(max(size, 1), dtype=np.uint8)
    return 2 * len(source) / min(cost_of(lambda: np.copyto(target, source)).cpu or 1e-9 for _ in range(5))

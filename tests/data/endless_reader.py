"""A process that reads with a worker for ever, to be killed: it says who reads for it."""

import itertools
import os
import time

import torch

from fmct.data.workers import batches_from_workers


class WhoReads:
    """Reads nothing, and says which process does, and which server it was forked from."""

    def read(self, draws: list[int], /) -> list[int]:
        del draws
        return [os.getpid(), os.getppid()]

    __getitems__ = read


def main() -> None:
    """Print the worker and its server, and wait."""
    draws = ([number] for number in itertools.count())
    batches = batches_from_workers(WhoReads(), draws, workers=1, prefetch=2, device=torch.device("cpu"))
    print(*next(batches)[0], flush=True)
    time.sleep(120)

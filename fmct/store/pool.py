"""The process pool of an ingest. Its workers end when the process that made them does, however that ends."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, TypeVar

from fmct.cores import available_cores

T = TypeVar("T")


class Inline(Executor):
    """Runs every call at once in this process."""

    _max_workers = 1

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Return a future that is done."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Pool(ProcessPoolExecutor):
    """A process pool that drops what it has not begun when the `with` block is left by an error."""

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self.shutdown(wait=True, cancel_futures=kind is not None)


def own_pool(workers: int, jobs: int) -> Executor:
    """Return a pool of `workers` processes (0: one a core), no more than there are jobs; one worker is this process."""
    count = min(workers or available_cores(), jobs)
    if count <= 1:
        return Inline()
    # Spawned, not forked: threads (a progress bar) and open files of this process are not theirs.
    return _Pool(count, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(os.getpid(),))


def _prepare(parent: int) -> None:
    """Let one worker use one core, and end it with its parent: a killed parent tells nobody."""
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)

"""Worker processes of a loader: started from a clean server process, ordered, and not silent when they die."""

import multiprocessing
import os
import threading
from collections.abc import Generator, Iterable, Iterator
from itertools import islice, tee
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader

from fmct.errors import DataError, FmctError

Piece = TypeVar("Piece", covariant=True)
PRELOADED = ["fmct.data.workers", "fmct.data.crops"]  # by the server that workers are forked from
PIECE = 8  # draws that a worker reads at once: its memory does not grow with the batch


class Reader(Protocol[Piece]):
    """Reads draws; picklable, since every worker has a copy."""

    def read(self, draws: list[int], /) -> Piece:
        """Return a piece of a batch. Raises what forbids it."""
        ...

    def __getitems__(self, draws: list[int], /) -> Piece | FmctError:
        """Return the same, or the mistake that forbids it: it is raised where the batch is taken."""
        ...


def batches_from_workers(
    dataset: Reader[Piece], draws: Iterable[list[int]], *, workers: int, prefetch: int, device: torch.device
) -> Iterator[list[Piece]]:
    """Yield the batches of `draws` in order, each as its pieces of at most PIECE draws.

    workers: processes that read (0: this one); each reads up to `prefetch` pieces ahead. Raises what a worker ran into,
    and DataError with a hint when a worker was killed. Takes nothing from the global random state.
    """
    batches, to_read = tee(draws)
    pieces = _pieces(dataset, to_read, workers=workers, prefetch=prefetch, device=device)
    try:
        for batch in batches:
            yield list(islice(pieces, -(-len(batch) // PIECE)))
    finally:
        pieces.close()


def _cut(draws: Iterable[list[int]]) -> Iterator[list[int]]:
    for batch in draws:
        yield from (batch[start : start + PIECE] for start in range(0, len(batch), PIECE))


def _pieces(
    dataset: Reader[Piece], draws: Iterable[list[int]], *, workers: int, prefetch: int, device: torch.device
) -> Generator[Piece, None, None]:
    if workers == 0:
        for piece in _cut(draws):
            yield dataset.read(piece)
        return
    loader = DataLoader(
        dataset,  # type: ignore[arg-type]  # torch's Dataset is a protocol in all but name
        batch_sampler=_cut(draws),  # type: ignore[arg-type]  # endless, so without the length that a Sampler may have
        num_workers=workers,
        collate_fn=_as_is,
        prefetch_factor=prefetch,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_begin,
        multiprocessing_context=_context(),
    )
    iterator = iter(loader)
    try:
        while True:
            try:
                batch = next(iterator)
            except (RuntimeError, EOFError, OSError) as error:
                raise _lost_worker(error) from error
            if isinstance(batch, FmctError):
                raise batch
            yield batch
    finally:
        del iterator


def _context() -> Any:
    """Return how to start workers: forked from a server without threads, CUDA or open files of this process.

    The server imports the modules of PRELOADED once; its workers share that memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _begin(worker: int) -> None:
    """Keep a worker to one thread (it decompresses, and the cores belong to the main process), and to its process."""
    del worker
    torch.set_num_threads(1)
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _end_with(trainer: Any) -> None:
    """End this process once the one that started it is gone, killed perhaps.

    torch's workers watch the process that they were forked from. That is the server here, which for its part lives as
    long as a worker does: both would stay, with all of their memory.
    """
    trainer.join()
    os._exit(1)


def _as_is(batch: Any) -> Any:
    return batch


def _lost_worker(error: Exception) -> Exception:
    """Return the error to raise: torch's own, or ours with a hint when a worker process is gone.

    A worker that dies while its tensor is being fetched shows as a broken connection, later by torch's word.
    """
    text = str(error)
    if isinstance(error, RuntimeError) and "DataLoader worker" not in text:
        return error
    said = text.splitlines()[0] if text else type(error).__name__
    return DataError(
        f"a loader worker died ({said}). It was killed from outside: by the out-of-memory killer (see dmesg; "
        "lower data.workers or data.prefetch), by too little shared memory (df -h /dev/shm; in a container "
        "raise --shm-size), or by the limit of open files (ulimit -n). data.workers=0 reads without workers."
    )

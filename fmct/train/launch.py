"""Starting ranks on this machine, and saying which rank it was when one dies or hangs.

`fmct pretrain … --nproc N` starts N copies of itself through `spawn`. Under torchrun, deepspeed or srun the copies are
already there (`launched`), and each just joins its group.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from fmct.cores import available_cores
from fmct.errors import EXIT_COLLAPSED, EXIT_NON_FINITE, EXIT_PREEMPTED, ConfigError, FmctError

T = TypeVar("T")
PARENT = "FMCT_PARENT"
PLANNED = (0, 2, EXIT_PREEMPTED, EXIT_NON_FINITE, EXIT_COLLAPSED)
GRACE_S = 15.0
_PR_SET_PDEATHSIG = 1


class RanksFailed(FmctError):
    """A rank died, hung or failed; the text names it."""

    exit_code = 1


def launched(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher (torchrun, deepspeed, srun with several tasks, or `spawn`) started this process."""
    return "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def rank_environment(environment: Mapping[str, str], *, rank: int, nproc: int, port: int) -> dict[str, str]:
    """Return the environment of one of `nproc` local ranks. Cores are shared evenly unless OMP_NUM_THREADS says so."""
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": nproc, "LOCAL_WORLD_SIZE": nproc, "LOCAL_SIZE": nproc}
    return {
        "OMP_NUM_THREADS": str(max(1, available_cores() // nproc)),
        **environment,
        **{name: str(value) for name, value in ours.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        PARENT: str(os.getpid()),
    }


def spawn(command: Sequence[str], *, nproc: int, grace_s: float = GRACE_S) -> int:
    """Run `command` as `nproc` ranks on this machine; return 0, the one planned code that ranks ended with, or 1.

    A signal is passed on once; a second one ends the ranks at once. When a rank dies, it is named on standard error
    and the others have `grace_s` seconds to end by themselves.
    """
    if nproc < 1:
        raise ConfigError(f"--nproc: expected at least 1, got {nproc}.")
    port = free_port()
    received: list[int] = []
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in _forwarded()}
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(nproc):
            environment = rank_environment(os.environ, rank=rank, nproc=nproc, port=port)
            # A session of their own: Ctrl-C reaches the ranks through us, once.
            ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return _wait(ranks, received, grace_s)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def tie_to_parent() -> None:
    """Ask Linux to end this rank when the process that spawned it is gone, however it went."""
    parent = os.environ.pop(PARENT, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def from_rank_0(function: Callable[[], T]) -> T:
    """Run `function` on rank 0 and return its value on every rank (picklable).

    A FmctError there is raised on rank 0, which tells the user, and ends the other ranks with the same exit code.
    """
    from fmct import distributed

    value: Any = None
    error: FmctError | None = None
    if distributed.rank() == 0:
        try:
            value = function()
        except FmctError as caught:
            error = caught
    value, code = distributed.gather_objects((value, error.exit_code if error else None))[0]
    if error is not None:
        raise error
    if code is not None:
        raise SystemExit(code)
    return value


@contextlib.contextmanager
def naming_failures(*, patience_s: float = 5.0) -> Iterator[None]:
    """A context in which an unexpected failure of this or another rank becomes RanksFailed with the ranks' names.

    Each failing rank leaves a note in the launcher's store and waits for the others' notes. A rank that leaves none
    within `patience_s` is dead or hangs: the collectives' time-out has run out on all who wait for it.
    """
    from fmct import distributed

    if distributed.world_size() == 1:
        yield
        return
    rank, ranks = distributed.rank(), distributed.world_size()
    try:
        yield
    except (FmctError, SystemExit) as error:
        with contextlib.suppress(Exception):
            _connect().set(f"fmct/ended/{rank}", f"own: {type(error).__name__}: {error}")
        raise
    except Exception as error:
        cause = "waiting" if _is_collective(error) else f"own: {type(error).__name__}: {error}"
        notes = _exchange_notes(cause, rank, ranks, patience_s)
        raise RanksFailed(f"{describe(notes, rank, ranks)} ({type(error).__name__}: {_first_line(error)})") from error


def describe(notes: Mapping[int, str], rank: int, ranks: int) -> str:
    """Return a sentence that names the ranks which failed by themselves, and those that left no note."""
    failed = [
        f"rank {r} failed: {note.removeprefix('own: ')}" for r, note in sorted(notes.items()) if note != "waiting"
    ]
    absent = [str(r) for r in range(ranks) if r not in notes]
    if failed:
        return f"rank {rank} ends because {'; '.join(failed)}."
    if absent:
        return f"rank {rank} waited in vain: rank {', '.join(absent)} gave no sign, so it died or hangs."
    return f"rank {rank}: a collective failed on all ranks, so the connection between them broke."


def shorten_timeouts(seconds: float) -> None:
    """Give every process group this time-out, also those that DeepSpeed made with torch's default of 30 minutes."""
    import torch.distributed as dist

    if dist.is_initialized():
        from torch.distributed import distributed_c10d

        public = getattr(dist, "set_timeout", None)  # torch 2.15 made it public
        for group in list(distributed_c10d._world.pg_map):
            (public or distributed_c10d._set_pg_timeout)(timedelta(seconds=seconds), group)


def _exchange_notes(cause: str, rank: int, ranks: int, patience_s: float) -> dict[int, str]:
    notes = {rank: cause}
    with contextlib.suppress(Exception):
        store = _connect()
        store.set(f"fmct/ended/{rank}", cause)
        until = time.monotonic() + patience_s
        while time.monotonic() < until and len(notes) < ranks:
            for other in set(range(ranks)) - set(notes):
                if store.check([f"fmct/ended/{other}"]):
                    notes[other] = store.get(f"fmct/ended/{other}").decode()
            time.sleep(0.1)
        # Whoever hosts the store stays until the others have read it.
        time.sleep(1.0)
    return notes


def _connect() -> Any:
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=5)
    return dist.TCPStore(address, port, is_master=False, timeout=timeout)  # pyright: ignore[reportPrivateImportUsage]


def _is_collective(error: Exception) -> bool:
    import torch.distributed as dist

    words = ("gloo", "nccl", "timed out", "connection", "peer", "monitored")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _forwarded() -> tuple[signal.Signals, ...]:
    return (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], received: list[int], grace_s: float) -> int:
    sent = 0
    failure = ""
    deadline = float("inf")
    while any(code is None for code in [process.poll() for process in ranks]):
        if sent < len(received):
            hard = sent > 0
            for process in ranks:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL if hard else received[sent])
            sent += 1
        ended = [(rank, p.returncode) for rank, p in enumerate(ranks) if p.returncode not in (None, 0)]
        if ended and deadline == float("inf"):
            deadline = time.monotonic() + grace_s
            rank, code = ended[0]
            if code not in PLANNED:
                failure = f"rank {rank} ended {describe_exit(code)}; the other ranks are stopped."
                print(f"fmct: {failure}", file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            for rank, process in enumerate(ranks):
                if process.poll() is None:
                    print(f"fmct: rank {rank} did not end by itself and is killed.", file=sys.stderr, flush=True)
                    process.kill()
        time.sleep(0.05)
    codes = {process.returncode for process in ranks}
    planned = [code for code in codes if code in PLANNED and code != 0]
    if codes == {0}:
        return 0
    return planned[0] if len(planned) == 1 and not failure else 1


def describe_exit(code: int) -> str:
    """Return how a process ended, from its return code as subprocess gives it."""
    if code >= 0:
        return f"with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (often: out of memory)" if name == "SIGKILL" else ""
    return f"by {name}{hint}"

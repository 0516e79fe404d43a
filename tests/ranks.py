"""Run a function on several ranks of a gloo process group, each in its own process, quickly (see tests/forked.py)."""

import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import forked

TIMEOUT_S = 120.0


def run_ranks(function: Callable[..., Any], *arguments: Any, world_size: int = 2) -> list[Any]:
    """Return what `function(*arguments)` returned on each rank, in rank order.

    The function is found again by module and name, so it lives at the top of a test module; arguments and results are
    pickled. An exception on any rank is raised here with its traceback.
    """
    context = forked.context()
    payload = pickle.dumps((function, arguments))
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            arguments_of_rank = (payload, sys.path, str(Path(folder) / "store"), rank, world_size, theirs)
            process = context.Process(target=_serve, args=arguments_of_rank, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        answers = [_answer(pipe, rank) for rank, pipe in enumerate(pipes)]
        for process in processes:
            process.join(TIMEOUT_S)
    failures = [text for ok, text in answers if not ok]
    if failures:
        raise AssertionError("\n".join(failures))
    return [value for _, value in answers]


def _answer(pipe: Any, rank: int) -> tuple[bool, Any]:
    """Return (True, value) or (False, text) of one rank."""
    try:
        if not pipe.poll(TIMEOUT_S):
            return False, f"rank {rank}: no answer within {TIMEOUT_S:.0f} s"
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return False, f"rank {rank}: its process ended without an answer"


def _serve(payload: bytes, path: list[str], store: str, rank: int, world_size: int, pipe: Any) -> None:
    """Join the group, call the function, send what it gave."""
    sys.path[:] = path
    import datetime

    import torch
    import torch.distributed as dist

    try:
        torch.set_num_threads(1)
        timeout = datetime.timedelta(seconds=TIMEOUT_S)
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timeout
        )
        function, arguments = pickle.loads(payload)
        answer = pickle.dumps((True, function(*arguments)))
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        answer = pickle.dumps((False, f"rank {rank}:\n{traceback.format_exc()}"))
    pipe.send_bytes(answer)

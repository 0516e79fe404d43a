"""A rank that hangs or fails is named by those who waited for it, soon and with a non-zero exit."""

import os
import sys
import time
from pathlib import Path

import pytest

from fmct import distributed
from fmct.errors import DataError, FmctError
from fmct.train.launch import free_port, naming_failures, rank_environment, spawn, tie_to_parent
from tests import forked


def serve(fault: str) -> tuple[int, str]:
    """Be a rank of which the second has a fault; return its exit code and what it tells its user."""
    distributed.initialise(2.0)
    try:
        with naming_failures(patience_s=1.5):
            distributed.barrier()
            if distributed.rank() == 1:
                if fault == "hang":
                    time.sleep(60)
                if fault == "bug":
                    raise ValueError("an unforeseen thing")
                raise DataError("a scan of rank 1 is damaged")
            distributed.barrier()
    except FmctError as error:
        return error.exit_code, f"[{distributed.rank()}] {error}"
    return 0, ""


def main() -> None:
    """Be a rank that `spawn` started."""
    tie_to_parent()
    code, said = serve(sys.argv[1])
    print(said, file=sys.stderr, flush=True)
    sys.exit(code)


def serve_as(fault: str, rank: int, port: int) -> tuple[int, str]:
    os.environ.update(rank_environment(os.environ, rank=rank, nproc=2, port=port))
    return serve(fault)


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("bug", 1, "[0] rank 0 ends because rank 1 failed: ValueError: an unforeseen thing."),
        ("data", 2, "[0] rank 0 ends because rank 1 failed: DataError: a scan of rank 1 is damaged."),
    ],
)
def test_the_rank_at_fault_is_named(fault: str, code: int, said: str) -> None:
    port = free_port()
    first, second = forked.call_each(serve_as, (fault, 0, port), (fault, 1, port))
    assert first[0] == 1
    assert first[1].startswith(said)
    assert second[0] == code, "what the rank at fault itself ends with"


def test_a_rank_that_hangs_is_named_and_ended(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    start = time.monotonic()
    command = [sys.executable, "-c", "from tests.faults.test_ranks import main; main()", "hang"]
    assert spawn(command, nproc=2, grace_s=4.0) == 1
    assert time.monotonic() - start < 60
    said = "[0] rank 0 waited in vain: rank 1 gave no sign, so it died or hangs."
    assert said in capfd.readouterr().err

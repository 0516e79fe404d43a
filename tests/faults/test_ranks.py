"""A rank that hangs or fails is named by those who waited for it, soon and with a non-zero exit."""

import sys
import time
from pathlib import Path

import pytest

from fmct.train.launch import spawn

RANK = """
import sys, time
from fmct import distributed
from fmct.errors import DataError, FmctError
from fmct.train.launch import naming_failures, tie_to_parent
tie_to_parent()
distributed.initialise(2.0)
try:
    with naming_failures(patience_s=1.5):
        distributed.barrier()
        if distributed.rank() == 1:
            if sys.argv[1] == "hang":
                time.sleep(60)
            if sys.argv[1] == "bug":
                raise ValueError("an unforeseen thing")
            raise DataError("a scan of rank 1 is damaged")
        distributed.barrier()
except FmctError as error:
    print(f"[{distributed.rank()}] {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("hang", 1, "[0] rank 0 waited in vain: rank 1 gave no sign, so it died or hangs."),
        ("bug", 1, "[0] rank 0 ends because rank 1 failed: ValueError: an unforeseen thing."),
        ("data", 1, "[0] rank 0 ends because rank 1 failed: DataError: a scan of rank 1 is damaged."),
    ],
)
def test_the_rank_at_fault_is_named(
    fault: str, code: int, said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    start = time.monotonic()
    assert spawn([sys.executable, "-c", RANK, fault], nproc=2, grace_s=4.0) in (code, 2)
    assert time.monotonic() - start < 60
    assert said in capfd.readouterr().err

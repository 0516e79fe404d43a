"""Measurements in processes of their own, and the memory of processes."""

import os
import subprocess
import sys

import pytest

from fmct import residence
from fmct.bench.footprint_ingest import ingest_footprint
from fmct.bench.fresh import MeasurementFailed, in_fresh_process


def test_a_failure_tells_what_the_process_said(tmp_path):
    with pytest.raises(MeasurementFailed, match=r"ingest_footprint\) ended with code 1:\n[\s\S]*DataError"):
        in_fresh_process(ingest_footprint, threads=1, file=str(tmp_path / "none.nii"), folder=str(tmp_path))


def test_only_benches_are_called():
    done = subprocess.run(
        [sys.executable, "-m", "fmct.bench.fresh", "os", "getcwd", "{}"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "not a module of benches" in done.stderr


def test_the_peak_remembers_what_was_let_go():
    before = residence.peak_resident()
    block = bytearray(64 << 20)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    held = residence.resident()
    del block
    slack = 4 << 20  # the kernel counts pages per processor and adds them up now and then
    assert residence.peak_resident() + slack >= held >= 64 << 20
    assert residence.peak_resident() + slack >= before > 0
    assert residence.peak_resident(os.getpid()) == pytest.approx(residence.peak_resident(), abs=slack)


def test_a_process_that_is_gone_holds_nothing():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert residence.peak_resident(process.pid) == 0

import os
import platform
import subprocess
import sys

import pytest

from fmct.heap import bound_kernels, keep_freed_memory

CODE = """
import resource, numpy as np
from fmct.heap import keep_freed_memory
keep_freed_memory() if {keep} else None
np.ones(1 << 23); np.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def test_a_freed_block_is_used_again_without_page_faults() -> None:
    """64 MB, four times over: without it each one is asked of the system anew. Without glibc nothing changes."""
    faults = {}
    for keep in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(keep=keep)], capture_output=True, text=True, check=True
        )
        faults[keep] = int(done.stdout)
    assert faults[True] * 10 < faults[False] or not glibc()


LARGE = """
import resource, numpy as np
from fmct.heap import keep_freed_memory
keep_freed_memory()
def touch():
    np.empty(3 << 30, dtype=np.uint8)[:: 1 << 23] = 1
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="says something of glibc")
def test_more_than_two_gigabytes_are_kept_too() -> None:
    """3 GB of which a page in 8 MB is touched, freed and asked for again: the same pages, without a fault."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_kernels_that_are_kept_are_bounded_unless_someone_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    bound_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    bound_kernels()
    assert 64 <= int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024

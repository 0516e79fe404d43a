"""What holds for the whole session: threads of a worker, and one fork server for all that is forked."""

import os

import pytest

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # before torch is imported: workers that each take every core wait for one another most of the time
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // WORKERS)))


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server():
    """Fork loader workers and ranks from one server: a process has only one, with what its first user preloads."""
    from fmct.data import workers
    from tests.forked import PRELOADED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "PRELOADED", PRELOADED)
        yield

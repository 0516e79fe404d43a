"""What holds for the whole session: workers and their threads, and one fork server for all that is forked."""

import os
from pathlib import Path

import pytest

from fmct.cores import available_cores

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # before torch is imported: workers that each take every core wait for one another most of the time
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // WORKERS)))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return a worker a core, or 0 where one file is named: it would have one anyway, and starts sooner without."""
    files = {word.partition("::")[0] for word in config.args}
    return 0 if len(files) == 1 and Path(files.pop()).is_file() else available_cores()


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server():
    """Fork loader workers and ranks from one server: a process has only one, with what its first user preloads."""
    from fmct.data import workers
    from tests.forked import PRELOADED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "PRELOADED", PRELOADED)
        yield

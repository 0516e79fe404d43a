"""Loader workers end with the process that they read for, however that ends."""

import os
import subprocess
import sys
import time


def test_a_killed_process_leaves_no_worker_and_no_server() -> None:
    command = [sys.executable, "-c", "from tests.data.endless_reader import main; main()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        readers = [int(word) for word in process.stdout.readline().split()]
        assert len(readers) == 2
        assert all(map(runs, readers))
        process.kill()
        process.wait()
        until = time.monotonic() + 30
        while any(map(runs, readers)) and time.monotonic() < until:
            time.sleep(0.1)
    assert not any(map(runs, readers))


def runs(process: int) -> bool:
    """Return whether there is such a process that has not ended."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

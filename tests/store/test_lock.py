"""One writer a store."""

import json
import os
import socket
import subprocess
import sys

import pytest

from fmct.errors import DataError
from fmct.store import lock


def test_a_second_writer_is_refused_and_told_who_holds_it(tmp_path):
    told = rf"process {os.getpid()} on {socket.gethostname()}"
    with lock.writing(tmp_path), pytest.raises(DataError, match=told), lock.writing(tmp_path):
        pass
    assert not (tmp_path / lock.LOCK).exists()


def test_a_dead_process_leaves_no_lock_behind(tmp_path):
    code = "import os, sys; from pathlib import Path; from fmct.store import lock\n"
    code += f"with lock.writing(Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / lock.LOCK).exists()
    with lock.writing(tmp_path):
        assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()


def test_a_number_used_anew_is_not_taken_for_the_holder(tmp_path):
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": "long ago"}
    (tmp_path / lock.LOCK).write_text(json.dumps(holder))
    with lock.writing(tmp_path):
        pass


def test_another_host_is_believed(tmp_path):
    (tmp_path / lock.LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(DataError, match="elsewhere"), lock.writing(tmp_path):
        pass


def test_a_lock_that_is_no_lock_is_replaced(tmp_path):
    (tmp_path / lock.LOCK).write_text("")
    with lock.writing(tmp_path):
        pass

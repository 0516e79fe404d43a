import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fmct.errors import ArtefactError, ConfigError
from fmct.train.run import RunLock, cut_logs, differences, holding, load_config, open_run, process_start
from fmct.train.session import per_rank

CORPUS = {"store": "a" * 64}


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    workers: int = 2


@dataclass(frozen=True)
class Config:
    seed: int = 0
    output: str = "run"
    data: Inner = field(default_factory=Inner)


def write_lock(folder: Path, **holder: object) -> Path:
    path = folder / "run.lock"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": "0", **holder}))
    return path


def test_one_job_at_a_time(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(ArtefactError, match=f"process {os.getpid()}"), RunLock(tmp_path):
            pass
        assert (tmp_path / "run.lock").exists(), "the refused job leaves the holder's lock"
    assert not (tmp_path / "run.lock").exists()
    with RunLock(tmp_path):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    write_lock(tmp_path, pid=child.pid, started="123")
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_process_number_used_again_is_not_the_holder(tmp_path: Path) -> None:
    write_lock(tmp_path, started="an earlier process of this number")
    with RunLock(tmp_path):
        pass


def test_another_host_s_lock_goes_stale_by_age(tmp_path: Path) -> None:
    path = write_lock(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(ArtefactError, match="elsewhere"), RunLock(tmp_path):
        pass
    old = time.time() - 3600
    os.utime(path, (old, old))
    with RunLock(tmp_path) as lock:
        os.utime(path, (old, old))
        lock.touch()
        assert time.time() - path.stat().st_mtime < 60


def test_a_torn_lock_is_held_until_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.write_text("{")
    with pytest.raises(ArtefactError), RunLock(tmp_path):
        pass
    old = time.time() - 3600
    os.utime(path, (old, old))
    with RunLock(tmp_path):
        pass


def test_process_start_tells_processes_apart() -> None:
    mine = process_start(os.getpid())
    assert mine is not None
    assert mine == process_start(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid) not in (None, mine)
    child.communicate(b"\n")
    assert process_start(child.pid) is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot be written"):
        holding(tmp_path / "file" / "run", rank=0)


def test_differences_are_leaves() -> None:
    before = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "gone": 0}
    now = {"a": 1, "b": {"c": 3, "d": [1, 3]}, "new": 1}
    assert differences(before, now) == {"b.c": (2, 3), "b.d": ([1, 2], [1, 3]), "gone": (0, None), "new": (None, 1)}
    assert set(differences(before, now, ignore=["b", "new"])) == {"gone"}
    assert "b.c" in differences(before, now, ignore=["b.cc", "b.d"])


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    open_run(tmp_path, Config(), corpus=CORPUS)
    open_run(tmp_path, Config(), corpus=CORPUS)
    with pytest.raises(ConfigError, match=r"data\.rate: 0\.1 → 0\.2.*--allow-change data\.rate"):
        open_run(tmp_path, Config(data=Inner(rate=0.2)), corpus=CORPUS)
    assert load_config(tmp_path)["data"]["rate"] == 0.1
    open_run(tmp_path, Config(data=Inner(rate=0.2)), corpus=CORPUS, allow_change=["data.rate"])
    assert load_config(tmp_path)["data"]["rate"] == 0.2


def test_neutral_keys_may_change(tmp_path: Path) -> None:
    open_run(tmp_path, Config(), corpus=CORPUS)
    open_run(tmp_path, Config(output="moved", data=Inner(workers=0)), corpus=CORPUS, neutral=["output", "data.workers"])


def test_another_corpus_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path, Config(), corpus=CORPUS)
    open_run(tmp_path, Config(), corpus={"the store moved": "a" * 64})
    with pytest.raises(ConfigError, match="another corpus"):
        open_run(tmp_path, Config(), corpus={"store": "b" * 64})
    open_run(tmp_path, Config(), corpus={"store": "b" * 64}, allow_change=["corpus"])


def test_fresh_sets_the_earlier_run_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in (1, 2):
        folder.mkdir(exist_ok=True)
        open_run(folder, Config(seed=number), corpus=CORPUS, fresh=True)
        (folder / "metrics.jsonl").write_text(str(number))
    open_run(folder, Config(seed=3), corpus=CORPUS, fresh=True)
    assert not (folder / "metrics.jsonl").exists()
    assert (tmp_path / "run.old-1" / "metrics.jsonl").read_text() == "1"
    assert (tmp_path / "run.old-2" / "metrics.jsonl").read_text() == "2"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtefactError, match=r"thesis\.tex"):
        open_run(tmp_path, Config(), corpus=CORPUS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_logs_are_cut_to_the_restored_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_logs(tmp_path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    cut_logs(tmp_path, 2)
    cut_logs(tmp_path / "absent", 0)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ArtefactError, match="not a run folder"):
        load_config(tmp_path / "absent")


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "said"),
    [
        (0, 1, "batch_size=0, .* 1 or more"),
        (8, 0, "engine.accumulate=0: both"),
        (9, 2, "9 does not divide over 1 ranks × 2"),
    ],
)
def test_a_batch_that_no_rank_can_share_is_refused(batch_size: int, accumulate: int, said: str) -> None:
    assert per_rank(8, 2) == 4
    with pytest.raises(ConfigError, match=said):
        per_rank(batch_size, accumulate)

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from fmct.cores import available_cores
from fmct.errors import ConfigError
from fmct.train.launch import describe, describe_exit, launched, rank_environment, spawn

ECHO = (
    "import os, pathlib, sys;"
    "e = os.environ;"
    "pathlib.Path(sys.argv[1], e['RANK']).write_text(' '.join(e[k] for k in"
    " ('LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'LOCAL_SIZE', 'MASTER_ADDR', 'OMP_NUM_THREADS')))"
)


def python(source: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", source, *arguments]


def test_who_was_launched() -> None:
    assert launched({"RANK": "0", "WORLD_SIZE": "2"})
    assert launched({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"})
    assert not launched({})
    assert not launched({"SLURM_STEP_NUM_TASKS": "1"}), "an interactive shell under srun is no launcher"
    assert not launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}), "nor is the batch script itself"


def test_each_rank_gets_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert spawn(python(ECHO, str(tmp_path)), nproc=3) == 0
    found = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert found == [f"{rank} 3 3 3 127.0.0.1 3" for rank in range(3)]


def test_cores_are_shared_when_the_user_says_nothing() -> None:
    cores = available_cores()
    assert rank_environment({}, rank=0, nproc=1, port=1)["OMP_NUM_THREADS"] == str(cores)
    assert rank_environment({}, rank=0, nproc=10_000, port=1)["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("code", [2, 75, 76, 77])
def test_a_planned_exit_code_that_all_share_comes_back(code: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert spawn(python(f"raise SystemExit({code})"), nproc=2) == code
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("own", [1, 2])
def test_the_command_ends_as_the_rank_at_fault(own: int) -> None:
    """Rank 1 ends with its own error's code (2: a mistake of the user's), rank 0 with 1, since it waited for rank 1."""
    source = f"import os, time; r = int(os.environ['RANK']); time.sleep(0.3 * (1 - r)); raise SystemExit([1, {own}][r])"
    assert spawn(python(source), nproc=2, grace_s=20) == own


def test_a_rank_that_dies_is_named_and_the_others_end(capfd: pytest.CaptureFixture[str]) -> None:
    source = (
        "import os, signal, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)"
    )
    start = time.monotonic()
    assert spawn(python(source), nproc=2, grace_s=0.3) == 1
    assert time.monotonic() - start < 20
    text = capfd.readouterr().err
    assert "rank 1 ended by SIGKILL" in text
    assert "rank 0 did not end by itself" in text


def test_a_signal_is_passed_on_once(tmp_path: Path) -> None:
    source = (
        "import os, pathlib, signal, sys, time\n"
        "def stop(number, frame): raise SystemExit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).touch()\n"
        "time.sleep(60)\n"
    )

    def send() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    assert spawn(python(source, str(tmp_path)), nproc=2) == 75
    thread.join()


def test_a_second_signal_ends_the_ranks_at_once(tmp_path: Path) -> None:
    source = (
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: pathlib.Path(sys.argv[1], 'got' + os.environ['RANK']).touch())\n"
        "pathlib.Path(sys.argv[1], 'up' + os.environ['RANK']).touch()\n"
        "end = time.time() + 60\n"
        "while time.time() < end: time.sleep(0.05)\n"
    )

    def send() -> None:
        for kind in ("up", "got"):
            while len(list(tmp_path.glob(f"{kind}*"))) < 2:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    assert spawn(python(source, str(tmp_path)), nproc=2) == 1
    thread.join()


def test_a_silly_number_of_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="--nproc"):
        spawn(python(""), nproc=0)


def test_notes_name_the_rank_at_fault() -> None:
    assert "rank 2 gave no sign" in describe({0: "waiting", 1: "waiting"}, 0, 3)
    text = describe({0: "waiting", 1: "own: DataError: bad scan"}, 0, 3)
    assert "rank 1 failed: DataError: bad scan" in text
    assert "gave no sign" not in text
    assert "connection" in describe({0: "waiting", 1: "waiting"}, 1, 2)


def test_exits_are_described() -> None:
    assert describe_exit(3) == "with exit code 3"
    assert "SIGKILL" in describe_exit(-9)
    assert "memory" in describe_exit(-9)
    assert describe_exit(-250) == "by signal 250"

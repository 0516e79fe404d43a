"""`fmct pretrain … --nproc 2`, killed and stopped, ends with the bytes of an unbroken run."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fmct.cli import main
from fmct.train import checkpoint
from fmct.train.launch import PARENT, free_port, rank_environment
from tests import forked
from tests.phantom_store import phantom_store
from tests.recipes.test_pretrain import TINY

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_store(tmp_path_factory.mktemp("phantoms"))


def command(store: Path, output: Path) -> list[str]:
    """Return the words of the real command on tiny settings, with DeepSpeed's ZeRO-1."""
    engine = ["engine.kind=deepspeed", "engine.zero_stage=1"]
    return ["pretrain", "pretrain/demo", *TINY, f"steps={STEPS}", *engine, f"store={store}", f"output={output}"]


def start(store: Path, output: Path) -> subprocess.Popen[str]:
    """Start the command as a user does, on two ranks."""
    code = "import sys; from fmct.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command(store, output), "--nproc", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    STARTED.append(process)
    return process


def serve(store: Path, output: Path, rank: int, port: int) -> tuple[int, str]:
    """Be one of two ranks that another launcher started; return the exit code and what was printed."""
    os.environ.update(rank_environment({"OMP_NUM_THREADS": "1"}, rank=rank, nproc=2, port=port))
    del os.environ[PARENT]
    torch.set_num_threads(1)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return main(command(store, output)), said.getvalue()


@pytest.fixture(autouse=True)
def _leave_no_process() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, text = process.communicate(timeout=240)
    return process.returncode, text


def wait_until_under_way(output: Path, starts: int, process: subprocess.Popen[str], *, steps: int = 2) -> None:
    """Wait until the run was started or resumed `starts` times and then wrote `steps` more lines of metrics."""
    lines = None
    until = time.monotonic() + 240
    while True:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no progress"
        if _lines(output / "events.jsonl") >= starts:  # the metrics were cut before this line was written
            now = _lines(output / "metrics.jsonl")
            lines = now if lines is None else lines
            if now >= lines + steps:
                return
        time.sleep(0.002)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def complete(store: Path, output: Path) -> list[str]:
    """Run the command to its end on two ranks of another launcher, which is quicker, and return what each printed."""
    port = free_port()
    ranks = forked.call_each(serve, *[(store, output, rank, port) for rank in range(2)])
    for code, text in ranks:
        assert code == 0, text
        assert "Warning" not in text, text
    return [text for _, text in ranks]


@pytest.fixture(scope="module")
def unbroken(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "run"
    complete(store, output)
    return output


def _rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def _events(run: Path) -> list[Any]:
    return [event.get("step") for event in _rows(run, "events.jsonl") if event["event"] == "resume"]


def assert_same(left: Path, right: Path) -> None:
    for one, other in zip(_rows(left), _rows(right), strict=True):
        assert one == other, f"{right} differs; it began anew at {_events(right)}"
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()
    folders = [checkpoint.newest(run / "checkpoints") for run in (left, right)]
    assert folders[0] is not None
    assert folders[1] is not None
    assert folders[0].name == folders[1].name == f"step-{STEPS:06d}"
    one, other = (checkpoint.read(folder) for folder in folders)
    for name, value in {**one.parameters, **one.moments}.items():
        assert torch.equal(value, {**other.parameters, **other.moments}[name]), name
    for name, value in one.task["teacher"].items():
        assert torch.equal(value, other.task["teacher"][name]), name


@pytest.mark.timeout(900)  # three starts of two ranks, on a machine that may be busy
def test_stopped_killed_whole_and_killed_in_part_it_ends_as_the_unbroken_run(
    store: Path, unbroken: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    chance = random.Random(0)

    stopped = start(store, output)
    wait_until_under_way(output, 1, stopped, steps=chance.randint(1, 3))
    stopped.send_signal(signal.SIGTERM)
    code, text = finish(stopped)
    assert code == 75, text
    assert "Warning" not in text, text
    assert text.count("Run the same command again") == 1

    orphaned = start(store, output)
    wait_until_under_way(output, 2, orphaned, steps=chance.randint(1, 3))
    orphaned.kill()  # the parent only: its ranks must not live on and hold the folder
    orphaned.communicate(timeout=60)

    maimed = start(store, output)
    wait_until_under_way(output, 3, maimed, steps=chance.randint(1, 3))
    ranks = Path(f"/proc/{maimed.pid}/task/{maimed.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    code, text = finish(maimed)
    assert code == 1
    assert "resuming from" in text
    assert "rank 1 ended by SIGKILL" in text

    assert "resuming from" in complete(store, output)[0]
    assert_same(unbroken, output)

"""`fmct pretrain … --nproc 2`, killed and stopped, ends with the bytes of an unbroken run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fmct.train import checkpoint
from tests.phantom_store import phantom_store
from tests.recipes.test_pretrain import TINY

ROOT = Path(__file__).resolve().parents[2]
STEPS = 14


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_store(tmp_path_factory.mktemp("phantoms"))


def start(store: Path, output: Path, *words: str, nproc: int = 2) -> subprocess.Popen[str]:
    """Start the real command on tiny settings, with DeepSpeed's ZeRO-1."""
    settings = [
        *TINY,
        f"steps={STEPS}",
        "engine.kind=deepspeed",
        "engine.zero_stage=1",
        f"store={store}",
        f"output={output}",
    ]
    code = "import sys; from fmct.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, "pretrain", "pretrain/demo", *settings, "--nproc", str(nproc), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, text = process.communicate(timeout=240)
    return process.returncode, text


def wait_for_step(output: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until the metrics have a line of `step`."""
    path = output / "metrics.jsonl"
    until = time.monotonic() + 240
    while not path.is_file() or path.read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no progress"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def unbroken(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "run"
    code, text = finish(start(store, output))
    assert code == 0, text
    return output


def assert_same(left: Path, right: Path) -> None:
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


def test_stopped_killed_whole_and_killed_in_part_it_ends_as_the_unbroken_run(
    store: Path, unbroken: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    chance = random.Random(0)

    stopped = start(store, output)
    wait_for_step(output, chance.randint(2, 3), stopped)
    stopped.send_signal(signal.SIGTERM)
    code, text = finish(stopped)
    assert code == 75, text
    assert text.count("Run the same command again") == 1

    orphaned = start(store, output)
    wait_for_step(output, chance.randint(6, 7), orphaned)
    orphaned.kill()  # the parent only: its ranks must not live on and hold the folder
    orphaned.communicate(timeout=60)

    maimed = start(store, output)
    wait_for_step(output, chance.randint(9, 11), maimed)
    ranks = Path(f"/proc/{maimed.pid}/task/{maimed.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    code, text = finish(maimed)
    assert code == 1
    assert "rank 1 ended by SIGKILL" in text

    code, text = finish(start(store, output))
    assert code == 0, text
    assert "resuming from" in text
    assert_same(unbroken, output)

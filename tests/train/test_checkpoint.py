import itertools
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmct.errors import CheckpointError
from fmct.train import checkpoint
from fmct.train.checkpoint import Retention, SaveFailed
from fmct.train.engine import Engine
from tests import forked
from tests.train.toy import batches, engine_of

VALUES = {"learning_rate": 0.02, "weight_decay": 0.1, "momentum": 0.9}


def trained(updates: int) -> Engine:
    engine = engine_of("torch", 0)
    for batch in itertools.islice(batches(0, 4), updates):
        engine.backward(engine.forward(batch, VALUES).loss)
        engine.step(VALUES)
        engine.task.after_update(VALUES)
    return engine


def save(parent: Path, engine: Engine, step: int) -> Path:
    return checkpoint.save(parent, engine, {"step": step, "draw": 4 * step, "updates": engine.updates})


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        save(tmp_path, trained(step), step)
    return tmp_path


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    engine = trained(2)
    folder = save(tmp_path, engine, 2)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*checkpoint.FILES, checkpoint.MANIFEST])
    other = engine_of("torch", 0)
    state = checkpoint.restore(other, folder)
    assert state == {"step": 2, "draw": 8, "updates": 2}
    for name, value in engine.task.state_dict().items():
        assert torch.equal(value, other.task.state_dict()[name])
    for name, value in engine.moments().items():
        assert torch.equal(value, other.moments()[name])
    for name, value in engine.task.beside["teacher"].items():
        assert torch.equal(value, other.task.beside["teacher"][name])
    assert other.task.updates == 2
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == {"name": "fmct-checkpoint", "version": "1.0"}


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_a_flipped_bit_or_a_cut_is_passed_over(three: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    newest, middle = three / "step-000003" / name, three / "step-000002" / name
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    middle.write_bytes(middle.read_bytes()[:-1])
    found = checkpoint.newest(three)
    assert found == three / "step-000001"
    assert "SHA-256" in caplog.text
    assert "cut short" in caplog.text
    with pytest.raises(CheckpointError, match="altered"):
        checkpoint.read(three / "step-000003")


def test_a_folder_without_manifest_or_file_is_none(three: Path) -> None:
    (three / "step-000003" / "manifest.json").unlink()
    (three / "step-000002" / "moments.safetensors").unlink()
    assert checkpoint.newest(three) == three / "step-000001"
    (three / "step-000001" / "manifest.json").write_text("{")
    assert checkpoint.newest(three) is None
    assert checkpoint.newest(three / "absent") is None


def test_strangers_are_not_checkpoints(three: Path) -> None:
    (three / "step-000009.tmp-1").mkdir()
    (three / ".trash-step-000008").mkdir()
    (three / "step-best").mkdir()
    (three / "latest").write_text("step-000099")
    assert checkpoint.newest(three) == three / "step-000003"
    checkpoint.sweep(three)
    assert not (three / "step-000009.tmp-1").exists()
    assert not (three / ".trash-step-000008").exists()
    assert (three / "step-best").exists()


def test_steps_beyond_a_million_sort_by_number(tmp_path: Path) -> None:
    engine = trained(1)
    for step in (999_999, 1_000_000):
        save(tmp_path, engine, step)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-1000000"


def test_retention_never_leaves_fewer_than_two(three: Path) -> None:
    checkpoint.retain(three, Retention(last=0))
    assert sorted(path.name for path in three.iterdir()) == ["step-000002", "step-000003"]


def test_a_failed_write_leaves_everything_as_it_was(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in three.rglob("*") if path.is_file()}

    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sha256_of", full)
    with pytest.raises(SaveFailed, match="No space left"):
        save(three, trained(1), 4)
    assert {path: path.read_bytes() for path in three.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in three.iterdir()) == ["step-000001", "step-000002", "step-000003"]


def test_a_state_that_is_not_finite_is_not_saved(three: Path) -> None:
    engine = trained(1)
    with torch.no_grad():
        engine.task.head.weight[0, 0] = torch.inf
    with pytest.raises(SaveFailed, match=r"head\.weight"):
        save(three, engine, 4)
    assert checkpoint.newest(three) == three / "step-000003"


def test_the_same_step_again_is_kept_and_a_broken_one_replaced(three: Path) -> None:
    kept = (three / "step-000003" / "manifest.json").stat().st_ino
    save(three, trained(3), 3)
    assert (three / "step-000003" / "manifest.json").stat().st_ino == kept
    (three / "step-000003" / "state.json").write_text("{}")
    save(three, trained(3), 3)
    checkpoint.verify(three / "step-000003")


KILLED_AT = ("mkdir", "first file", "state", "before the manifest", "before the rename", "after the rename")


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(function: Callable[..., object]) -> Callable[..., None]:
    def wrapped(*arguments: object, **settings: object) -> None:
        function(*arguments, **settings)
        die()

    return wrapped


def save_and_die(folder: Path, place: str) -> None:
    """Save a checkpoint and be killed at a place of KILLED_AT; in a process of its own."""
    if place == "mkdir":
        checkpoint.save_file = die
    elif place == "first file":
        checkpoint.save_file = then_die(checkpoint.save_file)
    elif place == "state":
        checkpoint.write_json = then_die(checkpoint.write_json)
    elif place == "before the manifest":
        checkpoint._commit = die
    elif place == "before the rename":
        checkpoint.verify = then_die(checkpoint.verify)
    elif place == "after the rename":
        checkpoint.fsync_directory = die
    save(folder, trained(4), 4)


def test_a_kill_at_any_point_of_a_save_leaves_a_checkpoint_that_verifies(three: Path) -> None:
    kills = [(place, forked.context().Process(target=save_and_die, args=(three / place, place))) for place in KILLED_AT]
    for _, process in kills:
        process.start()
    for place, process in kills:
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, place
    for place in KILLED_AT:
        found = checkpoint.newest(three / place)
        assert (found is not None) == (place == "after the rename")
        if found is None:
            assert any(".tmp-" in path.name for path in (three / place).iterdir())
            checkpoint.sweep(three / place)
            assert not list((three / place).iterdir())

import contextlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fmct.errors import EXIT_COLLAPSED, EXIT_NON_FINITE, EXIT_PREEMPTED, CheckpointError
from fmct.train import checkpoint
from fmct.train.capture import read_capture, replay
from fmct.train.checkpoint import Retention, SaveFailed
from fmct.train.log import RunLog
from fmct.train.loop import RunState, fit
from fmct.train.signals import StopRequest
from tests.ranks import run_ranks
from tests.train.toy import CPU, ENGINES, TrainingStopped, batches, engine_of, fingerprint, schedule, train


def metrics(folder: Path) -> bytes:
    return (folder / "metrics.jsonl").read_bytes()


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def broken_and_unbroken(folder: Path) -> dict:
    """Train each engine 6 steps at once, and 3 + 3 steps with a new engine; return both results of each."""
    found = {}
    for key in ENGINES:
        whole, parts = folder / f"whole-{key[0]}{key[1]}", folder / f"parts-{key[0]}{key[1]}"
        left = fingerprint(train(whole, *key, 6))
        train(parts, *key, 3)
        right = fingerprint(train(parts, *key, 6))
        found[key] = (left, right, metrics(whole), metrics(parts))
    return found


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("one")
    return folder, broken_and_unbroken(folder)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, run_ranks(broken_and_unbroken, folder)


@pytest.mark.parametrize("key", ENGINES, ids=str)
def test_n_plus_n_steps_are_2n_steps_bit_for_bit(one_rank: tuple, two_ranks: tuple, key: tuple[str, int]) -> None:
    for found in (one_rank[1], *two_ranks[1]):
        left, right, metrics_left, metrics_right = found[key]
        assert left == right, [name for name in left if left[name] != right[name]]
        assert metrics_left == metrics_right
        assert metrics_left.count(b"\n") == 6


def test_metrics_hold_every_value_once_a_step(one_rank: tuple) -> None:
    lines = rows(one_rank[0] / "whole-torch0")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    expected = {"loss", "loss/first", "loss/second", "learning_rate", "weight_decay", "momentum", "grad_norm", "spread"}
    assert expected <= set(lines[0])
    # Health that counts the task's own updates shows that run state came back.
    assert [line["updates"] for line in lines] == [0, 1, 2, 3, 4, 5]
    timing = rows(one_rank[0] / "parts-torch0", "timing.jsonl")
    assert {"step", "volumes_per_second", "mfu", "data_wait", "memory"} <= set(timing[0])


def resume_elsewhere(folder: Path) -> dict:
    return {key: fingerprint(train(folder / f"{key[0]}{key[1]}", *key, 6)) for key in ENGINES}


def test_another_world_size_continues_the_same_draws(one_rank: tuple, tmp_path: Path) -> None:
    """Tolerance of the loss: 1e-6 relative, fp32 sums in another order."""
    for key in ENGINES:
        train(tmp_path / f"{key[0]}{key[1]}", *key, 3)
    run_ranks(resume_elsewhere, tmp_path)
    for key in ENGINES:
        unbroken = rows(one_rank[0] / f"whole-{key[0]}{key[1]}")
        crossed = rows(tmp_path / f"{key[0]}{key[1]}")
        assert crossed[:3] == unbroken[:3]
        assert [r["loss"] for r in crossed] == pytest.approx([r["loss"] for r in unbroken], rel=1e-6)
        state = checkpoint.read(tmp_path / f"{key[0]}{key[1]}" / "checkpoints" / "step-000006").state
        assert (state["step"], state["draw"], state["updates"]) == (6, 24, 6)


def test_accumulation_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = fingerprint(train(tmp_path / "whole", "torch", 0, 6, accumulate=2))
    train(tmp_path / "parts", "torch", 0, 3, accumulate=2)
    assert fingerprint(train(tmp_path / "parts", "torch", 0, 6, accumulate=2)) == whole


def test_a_skipped_update_uses_its_draws_and_counts_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "torch", 0, 4, broken=(5,))
    lines = rows(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["skipped"] for line in lines] == [0, 1, 1, 1]
    event = next(e for e in rows(tmp_path, "events.jsonl") if e["event"] == "non-finite")
    assert event["samples"] == [["draw-4", "draw-5", "draw-6", "draw-7"]]
    assert "draw-5" in capsys.readouterr().err
    # Draws 0–3, then 8–11 and on: the fourth step's loss is that of a run whose second batch never was.
    engine = engine_of("torch", 0)
    assert engine.updates == 0
    assert not (tmp_path / "captures").exists()


def test_three_skips_in_a_row_stop_with_a_capture_that_replays(tmp_path: Path) -> None:
    broken = (9, 13, 18)
    with pytest.raises(TrainingStopped, match="3 updates in a row") as stopped:
        train(tmp_path, "deepspeed", 1, 6, broken=broken, save_every=1)
    assert stopped.value.exit_code == EXIT_NON_FINITE
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "step-000002"
    capture = tmp_path / "captures" / "step-000002"
    facts = read_capture(capture)
    assert facts["draws"] == [[[16, 17, 18, 19]]]
    assert facts["draw"] == 16
    found = replay(engine_of("torch", 0), capture, lambda draw: batches(draw, 4, broken=broken))
    assert any("loss = nan" in line and "NOT FINITE" in line for line in found)
    assert any("draw-18" in line for line in found)
    assert any("gradient of head.weight" in line for line in found)
    healthy = replay(engine_of("torch", 0), capture, lambda draw: batches(draw, 4))
    assert not any("NOT FINITE" in line for line in healthy)


def test_skips_apart_do_not_stop(tmp_path: Path) -> None:
    train(tmp_path, "torch", 0, 6, broken=(1, 5, 13, 17, 25))
    assert rows(tmp_path)[-1]["skipped"] == 5


def test_no_capture_in_another_folder() -> None:
    with pytest.raises(CheckpointError, match=r"capture\.json"):
        read_capture(Path("nowhere"))


def stop_after(step: int, stop: StopRequest, *, size: int = 4):
    """Yield batches and ask for a stop while `step` (from 1) is under way."""
    for number, batch in enumerate(batches(0, size), start=1):
        if number == step:
            stop.requested, stop.name = True, "SIGTERM"
        yield batch


def test_a_wish_to_stop_saves_at_the_step_s_end(tmp_path: Path) -> None:
    stop = StopRequest()
    with pytest.raises(TrainingStopped, match="step 2 by SIGTERM") as stopped:
        train(tmp_path / "parts", "torch", 0, 6, stop=stop, source=stop_after(2, stop))
    assert stopped.value.exit_code == EXIT_PREEMPTED
    right = fingerprint(train(tmp_path / "parts", "torch", 0, 6))
    assert right == fingerprint(train(tmp_path / "whole", "torch", 0, 6))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_stop_before_any_update_was_applied_resumes(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.requested = True
    for key in ENGINES:
        folder = tmp_path / f"{key[0]}{key[1]}"
        with pytest.raises(TrainingStopped):
            train(folder, *key, 6, stop=stop, broken=(0,))
        assert checkpoint.newest(folder / "checkpoints").name == "step-000000"
        assert train(folder, *key, 2, broken=(0,)).updates == 2
        assert rows(folder)[-1]["skipped"] == 1


def test_alarms_are_told_and_stop_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = engine_of("torch", 0)
    alarm = "rank-collapse: one dimension"
    engine.task.register_forward_hook(lambda module, inputs, output: replace(output, alarms=[alarm]))
    for stop, until in ((False, 2), (True, 4)):
        log = RunLog(tmp_path, until=4, device=CPU, terminal=False)
        settings = {"schedule": schedule(4), "log": log, "folder": tmp_path, "save_every": 9, "stop_on_alarm": stop}
        with contextlib.closing(log):
            if not stop:
                fit(engine, batches(0, 4), state=RunState(4), until=until, **settings)
                continue
            with pytest.raises(TrainingStopped, match="rank-collapse") as stopped:
                fit(engine, batches(0, 4), state=RunState(4), until=until, **settings)
            assert stopped.value.exit_code == EXIT_COLLAPSED
    assert capsys.readouterr().err.count("ALARM") == 3


def test_evaluation_runs_on_schedule(tmp_path: Path) -> None:
    seen: list[int] = []
    train(tmp_path, "torch", 0, 6, evaluate=seen.append, evaluate_every=2)
    assert seen == [2, 4, 6]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = itertools.count(1)
    whole = checkpoint.save_file

    def full(content: dict, path: Path) -> None:
        if next(calls) == 4:  # the first file of the second save
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole(content, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    train(tmp_path, "torch", 0, 6, save_every=2)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept[0] == "step-000002"
    assert kept[-1] == "step-000006"
    assert not any(".tmp" in name for name in kept)
    text = capsys.readouterr().err
    assert "WARNING" in text
    assert "No space left" in text


def test_a_disk_that_stays_full_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: dict, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SaveFailed, match="No space left"):
        train(tmp_path, "torch", 0, 6, save_every=1)


def test_retention_keeps_the_newest_and_every_nth(tmp_path: Path) -> None:
    train(tmp_path, "torch", 0, 6, save_every=1, retention=Retention(last=2, every=3))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000003", "step-000005", "step-000006"]


def test_a_torn_line_and_later_steps_are_cut_on_resume(tmp_path: Path) -> None:
    whole = fingerprint(train(tmp_path / "whole", "torch", 0, 6))
    parts = tmp_path / "parts"
    train(parts, "torch", 0, 5)  # the newest checkpoint is of step 3
    shutil.rmtree(parts / "checkpoints" / "step-000005")
    with open(parts / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    assert fingerprint(train(parts, "torch", 0, 6)) == whole
    assert metrics(parts) == metrics(tmp_path / "whole")

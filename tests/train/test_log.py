import contextlib
import json
import math
from pathlib import Path

import pytest

from fmct.train.engine import Update
from fmct.train.log import RunLog, format_duration, peak_memory, training_seconds, truncate_after
from tests.train.toy import CPU


def update(**changes: object) -> Update:
    settings = {"applied": True, "stop": False, "loss": 1.5, "grad_norm": 2.0, "terms": {"dino": 1.0}, **changes}
    return Update(**settings)  # type: ignore[arg-type]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_hold_no_time_and_timing_no_loss(tmp_path: Path) -> None:
    touched = []
    log = RunLog(
        tmp_path,
        until=2,
        device=CPU,
        terminal=False,
        flops_per_volume=1e6,
        peak_flops=1e9,
        on_step=lambda: touched.append(1),
    )
    with contextlib.closing(log):
        log.waited(0.001)
        log.step(1, update(health={"rank_me": math.nan}), {"learning_rate": 0.1}, volumes=8, skipped=0)
    (metrics,) = lines(tmp_path / "metrics.jsonl")
    assert metrics == {
        "step": 1, "loss": 1.5, "loss/dino": 1.0, "learning_rate": 0.1, "grad_norm": 2.0, "rank_me": None, "skipped": 0
    }  # fmt: skip
    (timing,) = lines(tmp_path / "timing.jsonl")
    assert timing["step"] == 1
    assert timing["volumes_per_second"] == pytest.approx(8 / timing["seconds"])
    assert timing["mfu"] == pytest.approx(timing["volumes_per_second"] * 1e6 / 1e9)
    assert timing["data_wait"] == pytest.approx(0.001 / timing["seconds"])
    assert timing["memory"] > 1_000_000
    assert touched == [1]


def test_a_disabled_log_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, until=2, device=CPU, enabled=False)
    log.step(1, update(), {"learning_rate": 0.1}, volumes=8, skipped=0)
    log.event("alarm")
    log.say("hello")
    log.sync()
    log.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_events_hold_nested_numbers_that_json_cannot(tmp_path: Path) -> None:
    with contextlib.closing(RunLog(tmp_path, until=2, device=CPU, terminal=False)) as log:
        log.event("non-finite", loss=math.inf, terms={"dino": math.nan})
    (event,) = lines(tmp_path / "events.jsonl")
    assert event["event"] == "non-finite"
    assert event["loss"] is None
    assert event["terms"] == {"dino": None}


def test_progress_is_a_plain_line_off_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(RunLog(tmp_path, until=4, device=CPU, terminal=False, interval_s=1e9)) as log:
        for step in (1, 2, 3, 4):
            log.step(step, update(health={"rank_me": 3.0}), {"learning_rate": 0.1}, volumes=8, skipped=0)
    text = capsys.readouterr().err.splitlines()
    assert len(text) == 2, "the first step and the last; the interval holds back the rest"
    for part in ("step 4/4", "loss 1.5", "lr 1.00e-01", "grad 2.00", "volumes/s", "data wait", "rank_me 3", "left"):
        assert part in text[-1]
    assert "\r" not in text[-1]


def test_progress_is_one_moving_line_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(RunLog(tmp_path, until=1, device=CPU, terminal=True)) as log:
        log.step(1, update(), {"learning_rate": 0.1}, volumes=8, skipped=0)
        log.say("a line of its own")
    text = capsys.readouterr().err
    assert text.startswith("\r\x1b[K━")
    assert "\r\x1b[Ka line of its own\n" in text


def test_cutting_keeps_earlier_bytes_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1,  "x": 1}\n{"step": 2}\nnot json\n{"step": 3}\n')
    assert truncate_after(path, 2) == 2
    assert path.read_text() == '{"step": 1,  "x": 1}\n{"step": 2}\n'


def test_durations_and_memory() -> None:
    assert [format_duration(s) for s in (0.4, 12, 250, 11_100)] == ["0 s", "12 s", "4 min 10 s", "3 h 05 min"]
    assert peak_memory(CPU) > 10_000_000


def test_training_seconds_are_those_of_every_call(tmp_path: Path) -> None:
    rows = [{"step": 1, "seconds": 2.5}, {"step": 2, "seconds": None}, {"step": 2, "seconds": 1.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "timing.jsonl").write_text(text + '{"step": 3, "sec')
    assert training_seconds(tmp_path) == 3.5

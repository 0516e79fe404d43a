"""Progress: lines in logs, a bar on terminals."""

import io

import pytest

from fmct.store import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("items", [50, 55])
def test_lines_come_every_so_often_with_rate_and_time_left(monkeypatch, items):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    told = progress.reporter(10.0, stream)
    told.start(100)
    for number in range(1, items + 1):
        now[0] += 1.0
        told.advance(f"{number} taken")
    told.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 5 + (items > 50), "the end has its line, and only one"
    assert lines[-1].startswith(f"{items}/100")
    assert lines[1] == "10/100 series, 10 taken, 1.00 series/s, 0:01:30 left"


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    told = progress.reporter(10.0, stream)
    assert isinstance(told, progress.Bar)
    told.start(2)
    told.advance("1 taken")
    told.advance("2 taken")
    told.close()
    assert "2/2" in stream.getvalue()

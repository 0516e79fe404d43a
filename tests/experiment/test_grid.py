"""Cells in order, kept once done, and stopped by the clock."""

import pytest

from fmct.errors import ConfigError
from fmct.experiment import grid
from fmct.experiment.grid import Cell, cells_of, read_cells, run_cells


def test_largest_sizes_come_first_for_all_arms_and_folds():
    cells = cells_of({"a": [2, 0], "b": [0]}, folds=[0, 1], seeds=[5])
    assert cells == [
        Cell("a", 0, 0, 5), Cell("b", 0, 0, 5), Cell("a", 0, 1, 5), Cell("b", 0, 1, 5),
        Cell("a", 2, 0, 5), Cell("a", 2, 1, 5),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="at least one arm"):
        cells_of({}, folds=[0], seeds=[0])


def test_a_finished_cell_is_not_run_again(tmp_path):
    cells = cells_of({"a": [0]}, folds=[0, 1], seeds=[0])
    asked: list[str] = []

    def run(cell: Cell) -> dict:
        asked.append(cell.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"scores": {"windows": {"p": 0.5}}}

    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, tmp_path, run)
    assert run_cells(cells, tmp_path, run) == []
    assert asked == ["a-n0-fold0-seed0", "a-n0-fold1-seed0", "a-n0-fold1-seed0"]
    done = read_cells(cells, tmp_path)
    assert [(cell["fold"], cell["scores"]) for cell in done] == [(n, {"windows": {"p": 0.5}}) for n in (0, 1)]


def test_no_cell_begins_after_the_minutes(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 61.0])
    monkeypatch.setattr(grid.time, "monotonic", lambda: next(clock))
    cells = cells_of({"a": [0]}, folds=[0, 1, 2], seeds=[0])
    left = run_cells(cells, tmp_path, lambda _: {}, minutes=1.0)
    assert [cell.fold for cell in left] == [1, 2]

"""Cells as a table: read back as written, refused when they do not fit, and a grid that goes on on another machine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmct.config import build, import_recipe, read_tree
from fmct.errors import ConfigError, DataError
from fmct.experiment.cell_table import as_published, read_cells_of_tables, write_cells
from fmct.experiment.grid import Cell
from fmct.experiment.pet_ct import PetCt, patients_by_fold
from fmct.experiment.pet_ct_runs import PetCtRuns
from fmct.train.session import Options

TESTED = {0: ["p0", "p2"], 1: ["p1", "p3"]}
SCORES = {"alone": ["windows", "whole"], "dual": ["windows", "whole", "paired"]}
PATIENTS = tuple(f"STS_{number:03d}" for number in range(30))


def results(cell: Cell, tested: dict[int, list[str]]) -> dict[str, Any]:
    """Return made-up results, the same for a cell at every call; the last patient has no Dice on whole crops."""
    random = np.random.default_rng([len(cell.arm), cell.size, cell.fold, cell.seed])
    scores = {score: {p: float(random.random()) for p in tested[cell.fold]} for score in SCORES[cell.arm]}
    scores["whole"].popitem()
    rest = sum(map(len, tested.values())) - len(tested[cell.fold])
    costs = {"updates": 150, "windows": 1200, "gflop_per_window": 6.01234567, "seconds": 100 * float(random.random())}
    return {**vars(cell), "scores": scores, **costs, "training_patients": cell.size or rest}


def written(path: Path, cells: list[Cell]) -> list[dict[str, Any]]:
    """Write a table of made-up cells and return what it says."""
    found = [as_published(results(cell, TESTED)) for cell in cells]
    write_cells(path, found, TESTED)
    return found


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    cells = [Cell("alone", 0, 0, 0), Cell("dual", 1, 1, 0)]
    found = written(tmp_path / "results.csv", cells)
    lines = (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "arm,size,fold,seed,score,patient,dice,seconds,updates,windows,gflop_per_window"
    assert len(lines) == 1 + 2 * 2 + 3 * 2
    whole = found[0]["scores"]["whole"]["p0"]
    assert lines[1] == f"alone,0,0,0,whole,p0,{whole:.4f},{found[0]['seconds']:.1f},150,1200,6.012"
    assert lines[2].startswith("alone,0,0,0,whole,p2,,")
    again = read_cells_of_tables([tmp_path / "results.csv"], scores=SCORES, tested=TESTED)
    assert again == dict(zip(cells, found, strict=True))


def test_a_cell_may_stand_in_two_tables_if_they_agree(tmp_path):
    written(tmp_path / "a.csv", [Cell("alone", 0, 0, 0)])
    written(tmp_path / "b.csv", [Cell("alone", 0, 0, 0), Cell("alone", 0, 1, 0)])
    tables = [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert len(read_cells_of_tables(tables, scores=SCORES, tested=TESTED)) == 2
    text = (tmp_path / "a.csv").read_text(encoding="utf-8")
    (tmp_path / "a.csv").write_text(text.replace(",150,", ",151,"), encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.csv: the cell alone-n0-fold0-seed0 says something else than in .*a\.csv"):
        read_cells_of_tables(tables, scores=SCORES, tested=TESTED)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("arm,size", "armed,size", "no column arm"),
        ("alone,0,0,0,whole,p0", "other,0,0,0,whole,p0", r"row 2: arm 'other'; the grid has alone, dual"),
        ("alone,0,0,0,whole,p0", "alone,0,7,0,whole,p0", "row 2: fold 7; the grid has 0, 1"),
        ("alone,0,0,0,whole,p0", "alone,0,0,-1,whole,p0", "row 2: seed is '-1'"),
        ("alone,0,0,0,whole,p0", "alone,all,0,0,whole,p0", "row 2: size is 'all'"),
        ("alone,0,0,0,whole,p0", "alone,0,0,0,paired,p0", "row 2: score 'paired'; the arm alone has windows, whole"),
        ("alone,0,0,0,whole,p0", "alone,0,0,0,whole,p1", "row 2: patient 'p1' is none of those that fold 0 tests"),
        ("alone,0,0,0,whole,p2", "alone,0,0,0,whole,p0", "row 3: .* score whole, patient p0 stands in the table twice"),
        ("alone,0,0,0,whole,p2,,", "alone,0,0,0,whole,p2,1.5,", "row 3: dice is 1.5"),
        ("alone,0,0,0,whole,p2,,", "alone,0,0,0,whole,p2,nan,", "row 3: dice is 'nan'"),
        (",150,1200,6.012\nalone,0,0,0,whole,p2", ",151,1200,6.012\nalone,0,0,0,whole,p2", "row 3: the cost"),
        ("6.012\nalone,0,0,0,whole,p2", "-6.012\nalone,0,0,0,whole,p2", "row 2: gflop_per_window is -6.012"),
        (",150,1200,6.012\nalone,0,0,0,whole,p2", "\nalone,0,0,0,whole,p2", "row 2 has 8 cells"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, old, new, said):
    written(tmp_path / "results.csv", [Cell("alone", 0, 0, 0)])
    text = (tmp_path / "results.csv").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "results.csv").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_cells_of_tables([tmp_path / "results.csv"], scores=SCORES, tested=TESTED)


def test_half_a_cell_and_no_file_are_refused(tmp_path):
    written(tmp_path / "results.csv", [Cell("alone", 0, 0, 0)])
    lines = (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "results.csv").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 rows are missing, such as windows of p2"):
        read_cells_of_tables([tmp_path / "results.csv"], scores=SCORES, tested=TESTED)
    with pytest.raises(DataError, match=r"absent\.csv"):
        read_cells_of_tables([tmp_path / "absent.csv"], scores=SCORES, tested=TESTED)


class Grid:
    """The recipe on made-up results, with a record of which cells were run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipe = import_recipe("finetune.pet_ct")
        self.ran: list[str] = []
        monkeypatch.setattr(self.recipe, "patients_of", lambda _: PATIENTS)
        monkeypatch.setattr(self.recipe, "prepare_pet_ct", lambda *_, **__: PetCt(*[Path()] * 4, PATIENTS))
        monkeypatch.setattr(PetCtRuns, "control", lambda self, folds: dict.fromkeys(PATIENTS, 0.75))
        monkeypatch.setattr(PetCtRuns, "run", lambda runs, cell: self.run(runs, cell))

    def run(self, runs: PetCtRuns, cell: Cell) -> dict[str, Any]:
        self.ran.append(cell.name)
        return results(cell, patients_by_fold(runs.data.patients))

    def __call__(self, output: Path, *overrides: str) -> list[str]:
        """Run the grid into a folder and return the names of the cells that were run."""
        arms = {"alone": {"set": ["from_scratch=true"], "sizes": [0, 2]}, "dual": {"paired": True}}
        tree = read_tree([], ["data=nowhere", "seeds=[0,1]", f"output={output}", *overrides])
        config = build(self.recipe.Config, {**tree, "arms": arms, "contrasts": ["dual - alone"]})
        self.ran = []
        assert self.recipe.main(config, Options(), torch.device("cpu")) == 0
        return self.ran


def test_a_grid_split_over_two_outputs_gives_the_table_of_one(tmp_path, monkeypatch, capsys):
    grid = Grid(monkeypatch)
    everything = grid(tmp_path / "one")
    assert len(everything) == 3 * 5 * 2
    first = grid(tmp_path / "first", "folds=[0,1,2]")
    known = f"known=[{tmp_path / 'first' / 'results.csv'}]"
    second = grid(tmp_path / "second", known)
    assert (len(first), len(second)) == (18, 12)
    assert sorted(first + second) == sorted(everything)
    for name in ("table.md", "results.json", "results.csv", "curve.png"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert grid(tmp_path / "third", f"known=[{tmp_path / 'one' / 'results.csv'}]") == []
    assert (tmp_path / "third" / "table.md").read_bytes() == (tmp_path / "one" / "table.md").read_bytes()
    assert "30 cells done, 0 left" in capsys.readouterr().out


def test_a_cell_that_was_run_here_counts_as_it_was_here(tmp_path, monkeypatch):
    grid = Grid(monkeypatch)
    grid(tmp_path / "one")
    text = (tmp_path / "one" / "results.csv").read_text(encoding="utf-8")
    other = tmp_path / "other.csv"
    lines = [line for line in text.splitlines() if line.startswith(("arm,", "alone,0,0,0,"))]
    cells = [line.split(",") for line in lines[1:]]
    other.write_text("\n".join([lines[0], *(",".join([*c[:6], "0.5", *c[7:]]) for c in cells)]) + "\n")
    assert grid(tmp_path / "one", f"known=[{other}]") == []
    assert (tmp_path / "one" / "results.csv").read_text(encoding="utf-8") == text


def test_a_table_of_another_budget_or_no_list_is_refused(tmp_path, monkeypatch):
    grid = Grid(monkeypatch)
    grid(tmp_path / "one", "folds=[0]")
    path = tmp_path / "one" / "results.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(",150,1200,", ",300,2400,"), encoding="utf-8")
    monkeypatch.setattr(grid.recipe, "prepare_pet_ct", lambda *_, **__: pytest.fail("scans were read before the table"))
    with pytest.raises(DataError, match="had 300 updates and 2400 windows; here they are 150 and 1200"):
        grid(tmp_path / "two", f"known=[{path}]")
    with pytest.raises(ConfigError, match="known"):
        grid(tmp_path / "two", f"known={path}")

"""Finished cells as one small table, which outlives the machine that ran them: a row for each cell, score and patient.

Dice has four decimals, and is empty where it is undefined; what a cell cost stands in each of its rows. Whoever has
the table can recompute every mean and interval, and go on with the cells that are not in it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmct.errors import DataError
from fmct.experiment.grid import Cell
from fmct.table_files import read_rows, write_rows

COSTS = {"seconds": 1, "updates": 0, "windows": 0, "gflop_per_window": 3}  # and their decimals
COLUMNS = ("arm", "size", "fold", "seed", "score", "patient", "dice", *COSTS)
DICE_DECIMALS = 4


def as_published(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell's results with as many decimals as the table has, so that both give the same means and intervals.

    cell: arm, size, fold, seed, scores {score: {patient: Dice}}, training_patients, and COSTS: seconds of training,
    updates, windows seen, GFLOP of a window's training step.
    """
    scores = {
        score: {p: round(value, DICE_DECIMALS) for p, value in values.items()}
        for score, values in cell["scores"].items()
    }
    costs = {name: round(cell[name], decimals or None) for name, decimals in COSTS.items()}
    kept = {name: cell[name] for name in ("arm", "size", "fold", "seed", "training_patients")}
    return {**kept, "scores": scores, **costs}


def write_cells(path: Path, cells: Iterable[Mapping[str, Any]], tested: Mapping[int, Sequence[str]]) -> None:
    """Write cells, such as `as_published` takes, as a table. tested: {fold: its test patients}, who all get a row."""
    rows = []
    for cell in cells:
        facts = {name: cell[name] for name in ("arm", "size", "fold", "seed")}
        costs = {name: f"{cell[name]:.{decimals}f}" for name, decimals in COSTS.items()}
        for score, values in sorted(cell["scores"].items()):
            for patient in tested[cell["fold"]]:
                dice = f"{values[patient]:.{DICE_DECIMALS}f}" if patient in values else None
                rows.append({**facts, "score": score, "patient": patient, "dice": dice, **costs})
    write_rows(path, COLUMNS, rows)


def read_cells_of_tables(
    paths: Sequence[str | Path], *, scores: Mapping[str, Sequence[str]], tested: Mapping[int, Sequence[str]]
) -> dict[Cell, dict[str, Any]]:
    """Return {cell: results} of tables that `write_cells` wrote, as `as_published` gives them.

    scores: {arm: the scores that each of its cells has}. tested: {fold: its test patients}. A cell may stand in
    several tables. Raises DataError, with file and row, for what is no such table: a value that is none, an arm, fold
    or score that the grid does not have, a patient of another fold, a row twice, a cell that is not whole, or that
    says something else in another table.
    """
    found: dict[Cell, dict[str, Any]] = {}
    first: dict[Cell, str | Path] = {}
    for path in paths:
        for cell, results in _read_table(Path(path), scores, tested).items():
            if found.setdefault(cell, results) != results:
                raise DataError(
                    f"{path}: the cell {cell.name} says something else than in {first[cell]}: two runs of it. "
                    "Name one of the tables."
                )
            first.setdefault(cell, path)
    return found


def _read_table(
    path: Path, scores: Mapping[str, Sequence[str]], tested: Mapping[int, Sequence[str]]
) -> dict[Cell, dict[str, Any]]:
    rows = read_rows(path)
    missing = [name for name in COLUMNS if name not in rows[0]]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; a table of cells has the columns {', '.join(COLUMNS)}."
        )
    values: dict[Cell, dict[tuple[str, str], float | None]] = defaultdict(dict)
    costs: dict[Cell, dict[str, float | int]] = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}: row {number}"
        cell = _cell(row, where, scores, tested)
        key = row["score"], row["patient"]
        if key[0] not in scores[cell.arm]:
            raise DataError(f"{where}: score {key[0]!r}; the arm {cell.arm} has {', '.join(scores[cell.arm])}.")
        if key[1] not in tested[cell.fold]:
            raise DataError(
                f"{where}: patient {key[1]!r} is none of those that fold {cell.fold} tests here: "
                f"{', '.join(tested[cell.fold])}. The table is of other data or other folds."
            )
        if key in values[cell]:
            raise DataError(f"{where}: {cell.name}, score {key[0]}, patient {key[1]} stands in the table twice.")
        values[cell][key] = _dice(row["dice"], where)
        cost = _costs(row, where)
        if costs.setdefault(cell, cost) != cost:
            raise DataError(f"{where}: the cost of {cell.name} differs from that in its first row.")
    patients = sum(map(len, tested.values()))
    return {
        cell: {
            **vars(cell),
            "training_patients": cell.size or patients - len(tested[cell.fold]),
            "scores": _by_score(path, cell, values[cell], scores[cell.arm], tested[cell.fold]),
            **costs[cell],
        }
        for cell in values
    }


def _cell(
    row: Mapping[str, str], where: str, scores: Mapping[str, Sequence[str]], tested: Mapping[int, Sequence[str]]
) -> Cell:
    arm = row["arm"]
    size, fold, seed = (_count(row, name, where) for name in ("size", "fold", "seed"))
    if arm not in scores:
        raise DataError(f"{where}: arm {arm!r}; the grid has {', '.join(scores)}.")
    if fold not in tested:
        raise DataError(f"{where}: fold {fold}; the grid has {', '.join(map(str, tested))}.")
    return Cell(arm, size, fold, seed)


def _by_score(
    path: Path,
    cell: Cell,
    values: Mapping[tuple[str, str], float | None],
    scores: Sequence[str],
    patients: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Return {score: {patient: Dice}} of a cell. Raises DataError where a score or patient has no row."""
    absent = [f"{score} of {patient}" for score in scores for patient in patients if (score, patient) not in values]
    if absent:
        raise DataError(
            f"{path}: the cell {cell.name} is not whole: {len(absent)} rows are missing, such as {absent[0]}. Take the "
            "table as it was written."
        )
    return {score: {p: v for p in patients if (v := values[score, p]) is not None} for score in scores}


def _dice(text: str, where: str) -> float | None:
    if not text:
        return None
    value = _number(text, "dice", where)
    if not 0 <= value <= 1:
        raise DataError(f"{where}: dice is {text}; expected 0 to 1, or empty where it is undefined.")
    return value


def _costs(row: Mapping[str, str], where: str) -> dict[str, float | int]:
    found: dict[str, float | int] = {}
    for name, decimals in COSTS.items():
        found[name] = _number(row[name], name, where) if decimals else _count(row, name, where)
        if found[name] < 0:
            raise DataError(f"{where}: {name} is {row[name]}; expected 0 or more.")
    return found


def _count(row: Mapping[str, str], name: str, where: str) -> int:
    if not (row[name].isascii() and row[name].isdigit()):
        raise DataError(f"{where}: {name} is {row[name]!r}; expected a whole number, 0 or more.")
    return int(row[name])


def _number(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {name} is {text!r}, which is no number (a point is the decimal mark).")
    return value

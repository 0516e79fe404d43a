"""The cells of a grid: which there are, in what order, and which are left. One JSON a cell; what is there is kept."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmct.artefacts import read_json, write_json
from fmct.errors import ConfigError

FORMAT = ("fmct-experiment-cell", "1.0")


@dataclass(frozen=True)
class Cell:
    """One run: an arm, trained on `size` patients of a fold's training part (0: all), with one seed."""

    arm: str
    size: int
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.arm}-n{self.size}-fold{self.fold}-seed{self.seed}"


def cells_of(sizes: Mapping[str, Sequence[int]], *, folds: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """Return the cells of {arm: its sizes}: all arms at their largest size first, seed by seed and fold by fold.

    A grid that is stopped early then holds whole comparisons. Size 0, all patients, is the largest.
    """
    if not sizes or not folds or not seeds or any(not numbers for numbers in sizes.values()):
        raise ConfigError("the experiment needs at least one arm with a size, one fold and one seed.")
    ranked = {arm: sorted(numbers, key=lambda n: (n != 0, -n)) for arm, numbers in sizes.items()}
    deepest = max(len(numbers) for numbers in ranked.values())
    return [
        Cell(arm, ranked[arm][rank], fold, seed)
        for rank in range(deepest)
        for seed in seeds
        for fold in folds
        for arm in ranked
        if rank < len(ranked[arm])
    ]


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    run: Callable[[Cell], dict[str, Any]],
    *,
    minutes: float = 0.0,
    known: Collection[Cell] = (),
) -> list[Cell]:
    """Run every cell without a file in FOLDER/cells, write its file, and return the cells that are left.

    minutes: no cell is begun after so long; 0 does them all. known: cells that were run elsewhere.
    """
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    left = [cell for cell in cells if cell not in known and not cell_file(folder, cell).is_file()]
    for done, cell in enumerate(left):
        if minutes and time.monotonic() - began > 60 * minutes:
            return left[done:]
        print(f"{cell.name}: {len(left) - done} of {len(cells)} cells to do", flush=True)
        start = time.perf_counter()
        found = run(cell)
        found = {**vars(cell), **found, "seconds_in_all": time.perf_counter() - start}
        write_json(cell_file(folder, cell), *FORMAT, found)
    return []


def read_cells(
    cells: Sequence[Cell], folder: Path, *, known: Mapping[Cell, Mapping[str, Any]] | None = None
) -> list[Mapping[str, Any]]:
    """Return what the files of the finished cells hold, in the cells' order; a cell without a file is as `known`."""
    found: dict[Cell, Mapping[str, Any]] = dict(known or {})
    for cell in cells:
        if cell_file(folder, cell).is_file():
            found[cell] = read_json(cell_file(folder, cell), *FORMAT)
    return [found[cell] for cell in cells if cell in found]


def cell_file(folder: Path, cell: Cell) -> Path:
    """Return the path of a cell's file."""
    return folder / "cells" / f"{cell.name}.json"

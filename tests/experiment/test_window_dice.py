"""Dice pooled per patient, against counting by hand; the table's means and contrasts."""

from types import SimpleNamespace

import pytest
import torch

from fmct.experiment.table import learning_curves, scores_by_row, write_table
from fmct.experiment.window_dice import above_half, window_dice
from fmct.metrics.contrasts import Contrast


def batch(truth, predicted, bags, valid=None):
    truth = torch.tensor(truth, dtype=torch.float32).view(len(bags), 1, 1, -1)
    return SimpleNamespace(
        mask=truth,
        valid=torch.ones_like(truth) if valid is None else torch.tensor(valid).view_as(truth),
        bags=torch.tensor(bags),
        predicted=torch.tensor(predicted, dtype=torch.bool).view_as(truth),
    )


def test_windows_of_a_patient_are_one_sum_with_empty_ones_among_them():
    batches = [
        batch([[1, 1, 0, 0], [0, 0, 0, 0]], [[1, 0, 0, 0], [1, 0, 0, 0]], [0, 0]),
        batch([[0.6, 0.4, 0, 0], [0, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 0, 0]], [0, 1]),
    ]
    found = window_dice(batches, {"m": lambda b: b.predicted})
    # patient 0: 2 · (1 + 0 + 1) over (1 + 2) + (1 + 0) + (2 + 1); patient 1 has nothing to judge
    assert found == {"m": {"0": pytest.approx(4 / 7)}}


def test_what_is_outside_the_scan_does_not_count():
    one = batch([[1, 1]], [[1, 1]], [0], valid=[[1.0, 0.0]])
    assert window_dice([one], {"m": lambda b: b.predicted & torch.tensor([True, False])}) == {"m": {"0": 1.0}}
    assert above_half(torch.tensor([0.0, -1e-3]).view(1, 1, 1, 1, 2)).tolist() == [[[[True, False]]]]


def cell(arm, fold, seed, dice, size=0, patients=24):
    scores = {"windows": dice, "whole": dice}
    return {
        "arm": arm, "fold": fold, "seed": seed, "size": size, "scores": scores, "seconds": 10.0,
        "gflop_per_window": 1.0, "training_patients": patients,
    }  # fmt: skip


def test_folds_are_joined_and_seeds_averaged_before_any_interval(tmp_path):
    dice = [{f"p{fold}{n}": 0.1 * n for n in range(1, 5)} for fold in range(2)]
    better = [{name: value + 0.2 for name, value in fold.items()} for fold in dice]
    cells = [cell("a", f, s, dice[f]) for f in range(2) for s in range(2)]
    cells += [cell("b", f, s, better[f]) for f in range(2) for s in range(2)]
    assert scores_by_row(cells, "windows")["a"] == [dice[0] | dice[1]] * 2
    text = write_table(
        tmp_path, cells, {"control": {name: 0.5 for fold in dice for name in fold}},
        [Contrast("b", "a"), Contrast("c", "a")], left=3, title="T",
    )  # fmt: skip
    assert "| a | 0.250 [" in text
    assert "| b − a | 0.200" in text
    assert "Not yet: c − a." in text
    assert "8 cells done, 3 left" in text
    assert (tmp_path / "results.json").is_file()
    assert not (tmp_path / "curve.png").exists()


def test_a_seed_with_open_folds_waits():
    cells = [cell("a", f, 0, {f"p{f}": 0.5}) for f in range(2)] + [cell("a", 0, 1, {"p0": 0.9})]
    assert scores_by_row(cells, "windows") == {"a": [{"p0": 0.5, "p1": 0.5}]}
    cells.append(cell("a", 1, 1, {"p1": 0.9}))
    assert len(scores_by_row(cells, "windows")["a"]) == 2


def test_an_arm_with_several_sizes_gets_a_curve(tmp_path):
    cells = [cell("a", 0, 0, {f"p{n}": 0.5 for n in range(6)})]
    cells.append(cell("a", 0, 0, {f"p{n}": 0.3 for n in range(6)}, size=5, patients=5))
    curves = learning_curves(cells)
    assert {size: point.estimate for size, point in curves["a"].items()} == {5: pytest.approx(0.3), 24: 0.5}
    write_table(tmp_path, cells, {}, [], left=0, title="T")
    assert (tmp_path / "curve.png").stat().st_size > 1000

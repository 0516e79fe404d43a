"""The picture of the learning curve, looked at pixel by pixel."""

import io

import numpy as np
from matplotlib import colors, image

from fmct.experiment.curve import curve_figure
from fmct.experiment.grid import cells_of
from fmct.experiment.table import learning_curves, write_table
from fmct.metrics.intervals import Interval

SCRATCH, PRETRAINED = "#0072B2", "#D55E00"


def cells() -> list[dict]:
    """Return made-up cells of two arms at four sizes and one arm at all 24 patients; five folds of six patients."""
    random, found = np.random.default_rng(0), []
    sizes = {"ct-scratch": [0, 10, 5, 2], "ct-pretrained": [0, 10, 5, 2], "dual": [0]}
    for cell in cells_of(sizes, folds=range(5), seeds=[0, 1]):
        level = 0.55 + 0.004 * (cell.size or 24)
        dice = {f"p{cell.fold}{n}": level + float(random.normal(0, 0.12)) for n in range(6)}
        costs = {"gflop_per_window": 1.0, "seconds": 1.0, "training_patients": cell.size or 24}
        found.append({**vars(cell), "scores": {"windows": dice}, **costs})
    return found


def bars(pixels: np.ndarray, colour: str) -> list[int]:
    """Return the columns in which a vertical bar of a colour begins."""
    near = np.abs(pixels[..., :3] - np.array(colors.to_rgb(colour))).max(-1) < 0.05
    tall = near.sum(0) > 50
    return [int(column) for column in np.flatnonzero(tall & ~np.roll(tall, 1))]


def test_four_sizes_of_two_arms_stand_side_by_side_with_bars(tmp_path):
    curves = learning_curves(cells())
    assert {arm: list(points) for arm, points in curves.items()} == {
        "ct-scratch": [2, 5, 10, 24], "ct-pretrained": [2, 5, 10, 24], "dual": [24],
    }  # fmt: skip
    assert all(point.low is not None and point.n == 30 for points in curves.values() for point in points.values())
    write_table(tmp_path, cells(), {}, [], left=0, title="Sarcoma: Dice of the tumour on CT alone")
    png = (tmp_path / "curve.png").read_bytes()
    assert len(png) < 60_000
    pixels = image.imread(io.BytesIO(png))
    assert pixels.shape[:2] == (555, 840)
    first, second = bars(pixels, SCRATCH), bars(pixels, PRETRAINED)
    assert len(first) == len(second) == 4
    assert all(4 < after - before < 40 for before, after in zip(first, second, strict=True))
    doublings = np.diff(first) / np.diff(np.log2([2, 5, 10, 24]))
    np.testing.assert_allclose(doublings, doublings.mean(), rtol=0.03)


def test_an_arm_of_one_size_is_not_drawn_and_few_patients_have_no_bar():
    few = {2: Interval(0.5, None, None, 5, "t"), 4: Interval(0.6, None, None, 5, "t")}
    alone = {"a": few}
    drawn = curve_figure(alone, "T", score="Dice")
    assert drawn == curve_figure({**alone, "b": {4: few[4]}}, "T", score="Dice")
    assert bars(image.imread(io.BytesIO(drawn)), SCRATCH) == []

import numpy as np
import pytest

from fmct.metrics.overlap_scores import overlap_scores
from tests.metrics.references_metrics import surface_points

SPACING = (3.0, 1.0, 2.0)


def ball(centre: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    grid = np.indices((10, 24, 14)) * np.array(SPACING)[:, None, None, None]
    return ((grid - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0) <= radius_mm**2


def test_surfaces_are_those_of_all_pairs_of_points() -> None:
    a, b = ball((13, 11, 13), 7), ball((15, 13, 12), 6)
    scores = overlap_scores(a, b, SPACING, tolerance_mm=2.0)
    first, second = surface_points(a, SPACING), surface_points(b, SPACING)
    distance = np.linalg.norm(first[:, None] - second[None], axis=-1)
    to_b, to_a = distance.min(axis=1), distance.min(axis=0)
    assert scores.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert scores.surface_dice == pytest.approx(((to_b <= 2).sum() + (to_a <= 2).sum()) / (len(to_a) + len(to_b)))
    assert scores.hd95_mm == pytest.approx(max(np.quantile(to_b, 0.95), np.quantile(to_a, 0.95)), rel=1e-5)
    assert scores.volume_error_ml == pytest.approx((a.sum() - b.sum()) * 6 / 1000)


def test_a_mask_at_the_border_has_a_surface_there() -> None:
    whole = np.ones((4, 5, 6), dtype=bool)
    less = whole.copy()
    less[0] = False
    scores = overlap_scores(less, whole, SPACING, tolerance_mm=1.0)
    assert scores.hd95_mm == pytest.approx(3.0)
    assert scores.surface_dice < 1
    same = overlap_scores(whole, whole, SPACING)
    assert (same.dice, same.surface_dice, same.hd95_mm) == (1.0, 1.0, 0.0)


def test_empty_masks_are_undefined_or_zero_never_perfect() -> None:
    empty, full = np.zeros((4, 5, 6), dtype=bool), np.ones((4, 5, 6), dtype=bool)
    nothing = overlap_scores(empty, empty, SPACING)
    assert np.isnan([nothing.dice, nothing.surface_dice, nothing.hd95_mm]).all()
    missed = overlap_scores(empty, full, SPACING)
    assert (missed.dice, missed.surface_dice) == (0.0, 0.0)
    assert np.isnan(missed.hd95_mm)
    alarm = overlap_scores(full, empty, SPACING)
    assert (alarm.dice, alarm.reference_ml, alarm.predicted_ml) == (0.0, 0.0, pytest.approx(0.72))
    with pytest.raises(ValueError, match="not on one grid"):
        overlap_scores(empty, full[1:], SPACING)

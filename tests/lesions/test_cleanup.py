import math
from dataclasses import replace

import numpy as np
import pytest

from fmct.errors import ConfigError, DataError
from fmct.lesions.cleanup import CleanupRules, Verdict, clean
from fmct.lesions.shape import eccentricity, shape_of, solidity
from tests.lesions.brains import ball, tube

SHAPE, ONE = (24, 40, 40), (1.0, 1.0, 1.0)
EVERYWHERE = np.ones(SHAPE, dtype=bool)
OFF = CleanupRules(**dict.fromkeys(CleanupRules.__dataclass_fields__))


def only(**rules: float) -> CleanupRules:
    return replace(OFF, **rules)


def judged(inside: np.ndarray, rules: CleanupRules, **given: object) -> Verdict:
    """Return the verdict of a label map with one candidate, after checking that the map agrees with it."""
    labels = inside.astype(np.int32)
    kept, (verdict,) = clean(
        labels, given.pop("brain", np.ones(inside.shape, bool)), given.pop("spacing", ONE), rules, **given
    )
    np.testing.assert_array_equal(kept, labels if verdict.kept else np.zeros_like(labels))
    assert verdict.kept == (verdict.reason == "")
    return verdict


def test_a_sphere_stays_and_a_tube_and_a_single_voxel_go() -> None:
    """B.13.11."""
    speck = np.zeros(SHAPE, dtype=bool)
    speck[5, 5, 5] = True
    assert judged(ball(SHAPE, ONE, 2.5), CleanupRules()).kept
    assert judged(ball(SHAPE, ONE, 1.5), CleanupRules()).kept
    assert "max_elongation" in judged(tube(SHAPE, ONE, 1.2, (0, 0)), CleanupRules()).reason
    assert "min_voxels: voxels 1 is under 2" in judged(speck, CleanupRules()).reason


@pytest.mark.parametrize("spacing", [(3.0, 0.8, 0.8), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("depth", [2.0, 4.0, 6.0])
def test_depth_is_millimetres_below_the_surface_of_the_brain(spacing: tuple[float, ...], depth: float) -> None:
    """B.13.11: kept iff d ≥ limit, for both spacings; off by default."""
    shape = (20, 60, 60)
    brain = np.zeros(shape, dtype=bool)
    brain[:, 10:, :] = True
    candidate = np.zeros(shape, dtype=bool)
    row = 9 + round(depth / spacing[1])
    candidate[9:12, row : row + 1, 20:22] = True
    true_depth = (row - 9) * spacing[1]
    assert judged(candidate, only(min_depth_mm=true_depth), brain=brain, spacing=spacing).kept
    verdict = judged(candidate, only(min_depth_mm=true_depth + 0.1), brain=brain, spacing=spacing)
    assert "min_depth_mm" in verdict.reason
    assert verdict.measures["depth_mm"] == pytest.approx(true_depth)
    assert judged(candidate, only(), brain=brain, spacing=spacing).kept


def test_where_the_scan_cuts_the_brain_off_is_no_surface() -> None:
    verdict = judged(ball(SHAPE, ONE, 2.5, (-9, 0, 0)), only(min_depth_mm=50.0))
    assert verdict.kept
    assert verdict.measures["depth_mm"] == math.inf


def test_a_ball_with_one_odd_slice_stays_here_and_goes_in_the_paper() -> None:
    """B.13.11: B-D11, one odd slice removes a whole component in the published clean-up."""
    odd = ball(SHAPE, ONE, 4.0)
    odd[14] = False
    odd[14, 16:25, 16] = odd[14, 24, 16:25] = True  # an angle of one voxel's width
    assert judged(odd, replace(CleanupRules(), max_volume_mm3=600.0)).kept
    verdict = judged(odd, CleanupRules.paper())
    assert "slice_eccentricity: 1 slices" in verdict.reason
    assert judged(ball(SHAPE, ONE, 4.0), CleanupRules.paper()).kept


def test_the_papers_depth_is_in_voxels() -> None:
    near = ball(SHAPE, ONE, 1.5, (0, 8, 0))
    brain = np.zeros(SHAPE, dtype=bool)
    brain[:, :35, :] = True
    assert "min_depth_voxels" in judged(near, CleanupRules.paper(), brain=brain).reason
    assert judged(near, CleanupRules(), brain=brain).kept


CASES = [
    ({"min_score": 0.5}, ball(SHAPE, ONE, 2.0), {"scores": {1: 0.4}}, {"scores": {1: 0.6}}),
    ({"min_volume_mm3": 40.0}, ball(SHAPE, ONE, 2.0), {}, {"spacing": (2.0, 1.0, 1.0)}),
    ({"max_volume_mm3": 40.0}, ball(SHAPE, ONE, 2.0), {"spacing": (2.0, 1.0, 1.0)}, {}),
    ({"min_brain_share": 0.5}, ball(SHAPE, ONE, 2.0), {"brain": ball(SHAPE, ONE, 2.0, (3, 0, 0))}, {}),
    ({"max_elongation": 2.0}, tube((3, 3, 9), ONE, 1.0, (0, 0)), {}, {"spacing": (3.0, 3.0, 1.0)}),
    ({"min_sphericity": 0.5}, tube((3, 3, 9), ONE, 1.0, (0, 0)), {}, {"spacing": (3.0, 3.0, 1.0)}),
    ({"max_vessel_share": 0.5}, ball(SHAPE, ONE, 2.0), {"vessels": EVERYWHERE}, {"vessels": ~EVERYWHERE}),
    (
        {"max_vessel_contacts": 1},
        ball(SHAPE, ONE, 2.0),
        {"vessels": tube(SHAPE, ONE, 1.0, (0, 0))},
        {"vessels": tube(SHAPE, ONE, 1.0, (0, 0)) & (np.indices(SHAPE)[2] > 20)},
    ),
]


@pytest.mark.parametrize(("rule", "inside", "falls", "stays"), CASES, ids=[next(iter(case[0])) for case in CASES])
def test_each_rule_has_its_own_switch_and_says_why(
    rule: dict[str, float], inside: np.ndarray, falls: dict[str, object], stays: dict[str, object]
) -> None:
    """B.12: off unless given; what falls names the rule, its number and its limit."""
    verdict = judged(inside, only(**rule), **dict(falls))
    assert not verdict.kept
    assert verdict.reason.startswith(f"{next(iter(rule))}: ")
    assert judged(inside, OFF, **dict(falls)).kept
    assert judged(inside, only(**rule), **dict(stays)).kept


def test_cleaning_twice_changes_nothing_and_each_removal_has_a_reason() -> None:
    """B.13.12: idempotent, never a voxel more, a verdict for each candidate."""
    random = np.random.default_rng(0)
    labels = np.zeros(SHAPE, dtype=np.int32)
    for number in range(1, 30):
        place, size = random.integers(0, (20, 34, 34)), random.integers(1, 7, 3)
        labels[tuple(slice(p, p + s) for p, s in zip(place, size, strict=True))] = number
    brain = ball(SHAPE, ONE, 18.0)
    for rules in (CleanupRules(), CleanupRules.paper(), replace(CleanupRules(), min_depth_mm=3.0)):
        once, verdicts = clean(labels, brain, ONE, rules)
        again, second = clean(once, brain, ONE, rules)
        np.testing.assert_array_equal(again, once)
        np.testing.assert_array_equal(once[once > 0], labels[once > 0])
        assert [v.label for v in verdicts] == np.unique(labels)[1:].tolist()
        assert {v.label for v in verdicts if v.kept} == set(np.unique(once)) - {0}
        assert all(v.kept for v in second)
        assert all(v.reason for v in verdicts if not v.kept)
        assert any(not v.kept for v in verdicts)
        assert once.dtype == labels.dtype


def test_candidates_are_judged_alike_in_any_order_and_orientation() -> None:
    """B.13.24: labels permuted and axes flipped, the same candidates stay."""
    labels = np.zeros(SHAPE, dtype=np.int16)
    for number, part in enumerate(
        (ball(SHAPE, ONE, 2, (0, -9, 0)), tube(SHAPE, ONE, 1, (0, 9)), ball(SHAPE, ONE, 3)), 1
    ):
        labels[part] = number
    expected = clean(labels, EVERYWHERE, ONE)[0] > 0
    renamed = np.array([0, 3, 1, 2], dtype=np.int16)[labels]
    np.testing.assert_array_equal(clean(renamed, EVERYWHERE, ONE)[0] > 0, expected)
    flipped = np.ascontiguousarray(labels[::-1, :, ::-1])
    np.testing.assert_array_equal(clean(flipped, EVERYWHERE, ONE)[0] > 0, expected[::-1, :, ::-1])


def test_shape_measures_have_the_values_that_geometry_gives() -> None:
    """A ball of many voxels is one for all of them; a box by its sides."""
    round_one = shape_of(np.argwhere(ball((41, 41, 41), (0.5, 0.5, 0.5), 9.0)), (0.5, 0.5, 0.5))
    assert round_one.volume_mm3 == pytest.approx(4 / 3 * math.pi * 9**3, rel=0.01)
    assert round_one.sphericity == pytest.approx(1.0, abs=0.01)
    assert round_one.elongation == pytest.approx(1.0, abs=0.01)
    assert round_one.length_mm == pytest.approx(18.0, abs=1.0)
    box = shape_of(np.argwhere(np.ones((4, 6, 30), bool)), ONE)
    assert box.elongation == pytest.approx(5.0, rel=1e-6)
    assert box.length_mm == pytest.approx(30.0)
    assert box.centre == (1.5, 2.5, 14.5)
    side = 0.6 * (3 * 720 / (4 * math.pi)) ** (2 / 3)
    assert box.sphericity == pytest.approx(side / ((16 + 36 + 900) / 12))
    two_slices = shape_of(np.array([[0, 0, 0], [1, 0, 0]]), (3.0, 0.8, 0.8))
    assert two_slices.elongation == pytest.approx(2.0)  # not 7.5: a slice is as fine as can be told


def test_plane_measures() -> None:
    assert eccentricity(np.argwhere(np.ones((5, 5)))) == pytest.approx(0.0)
    assert eccentricity(np.argwhere(np.ones((2, 8)))) == pytest.approx(math.sqrt(1 - 4 / 64))
    assert solidity(np.argwhere(np.ones((5, 5)))) == pytest.approx(1.0)
    angle = np.zeros((9, 9), dtype=bool)
    angle[:, 0] = angle[0, :] = True
    assert solidity(np.argwhere(angle)) == pytest.approx(17 / (81 - 64 / 2))


def test_what_cannot_be_is_said() -> None:
    """B.13.14 and 26: empty brain mask, mask on another grid, labels that are none, a score that is missing."""
    labels = ball(SHAPE, ONE, 2.0).astype(np.int32)
    for arguments, given, error in (
        ((labels, ~EVERYWHERE), {}, "brain mask is empty"),
        ((labels, EVERYWHERE[1:]), {}, "another grid"),
        ((labels, EVERYWHERE), {"vessels": EVERYWHERE[1:]}, "vessel mask"),
        ((labels.astype(float), EVERYWHERE), {}, "integers"),
        ((labels, EVERYWHERE), {"scores": {2: 0.5}}, "candidate 1 has no score"),
    ):
        with pytest.raises(DataError, match=error):
            clean(*arguments, ONE, **given)
    with pytest.raises(ConfigError, match="min_volume_mm3"):
        CleanupRules(min_volume_mm3=-1.0)
    with pytest.raises(ConfigError, match="one rule"):
        CleanupRules(slice_solidity=0.5)
    assert clean(np.zeros(SHAPE, np.int32), EVERYWHERE, ONE)[1] == []

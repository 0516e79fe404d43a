import numpy as np
import pytest

from fmct.errors import ConfigError, DataError
from fmct.phantoms.body import axial_affine
from fmct.registration.pair_quality import (
    ACCEPT,
    DOWN_WEIGHT,
    DROP,
    PairPolicy,
    PairQuality,
    dice,
    judge,
    lung_vessels,
    lungs,
    measure,
    min_jacobian,
)
from fmct.volume import Volume
from tests.phantoms.phantom_pairs import small_pair

GOOD = PairQuality(lung_dice=0.97, vessel_dice=0.8, min_jacobian=0.5, minutes=20, overlap=1.0, heart_hu=250)


@pytest.mark.parametrize(
    ("minutes", "decision", "weight"),
    [
        (0, ACCEPT, 1.0),
        (60, ACCEPT, 1.0),
        (61, DOWN_WEIGHT, 0.6),
        (720, DOWN_WEIGHT, 0.6),
        (-721, DOWN_WEIGHT, 0.3),
        (1440, DOWN_WEIGHT, 0.3),
        (1441, DROP, 0.0),
    ],
)
def test_the_interval_chooses_the_tier(minutes: float, decision: str, weight: float) -> None:
    verdict = judge(PairQuality(minutes=minutes))
    assert (verdict.decision, verdict.weight) == (decision, weight)
    assert verdict.aligned == (decision != DROP)
    assert bool(verdict.reasons) == (decision != ACCEPT)


def test_an_unknown_interval_is_doubted_unless_both_are_of_one_examination() -> None:
    assert judge(PairQuality()).weight == 0.3
    assert judge(PairQuality(same_examination=True)).decision == ACCEPT


@pytest.mark.parametrize(
    ("worse", "word"),
    [
        ({"vessel_dice": 0.59}, "vessel Dice 0.59"),
        ({"lung_dice": 0.7}, "lung Dice 0.70"),
        ({"min_jacobian": 0.0}, "folds"),
        ({"overlap": 0.2}, "fields of view"),
        ({"failure": "no overlap"}, "no overlap"),
    ],
)
def test_g2_a_misfit_drops_the_pair_and_what_was_carried_over_with_it(worse: dict[str, float], word: str) -> None:
    assert judge(GOOD).decision == ACCEPT
    verdict = judge(PairQuality(**{**GOOD.facts(), **worse}))  # type: ignore[arg-type]
    assert (verdict.decision, verdict.weight, verdict.aligned) == (DROP, 0.0, False)
    assert word in verdict.reasons[0]


@pytest.mark.parametrize("worse", [{"identical": True}, {"heart_hu": 119.0}])
def test_g8_a_pair_that_teaches_nothing_weighs_nothing_but_misplaces_nothing(worse: dict[str, float]) -> None:
    verdict = judge(PairQuality(**{**GOOD.facts(), **worse}))  # type: ignore[arg-type]
    assert (verdict.decision, verdict.weight, verdict.aligned) == (DROP, 0.0, True)
    assert judge(PairQuality(**{**GOOD.facts(), "heart_hu": 120.0})).decision == ACCEPT  # type: ignore[arg-type]


def test_every_reason_is_told_and_thresholds_are_the_users() -> None:
    verdict = judge(PairQuality(lung_dice=0.1, vessel_dice=0.1, minutes=9999, heart_hu=40))
    assert len(verdict.reasons) == 4
    loose = PairPolicy(min_vessel_dice=0.0, tier_minutes=[10.0], tier_weights=[0.5])
    assert judge(PairQuality(vessel_dice=0.1, minutes=5), loose).weight == 0.5
    with pytest.raises(ConfigError, match="rising minutes"):
        PairPolicy(tier_minutes=[60.0, 30.0, 90.0])
    with pytest.raises(ConfigError, match="as many weights"):
        PairPolicy(tier_weights=[1.0])


def test_dice_of_masks() -> None:
    a, b = np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0])
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1.0
    assert dice(a, b, inside=np.array([True, False, True, True])) == 0.0
    assert dice(a * 0, b * 0) is None


def test_the_jacobian_of_a_linear_field_is_its_determinant_on_any_grid() -> None:
    matrix = np.array([[0.1, 0.02, 0], [0, -0.2, 0.03], [0.05, 0, 0.3]])
    expected = np.linalg.det(np.eye(3) + matrix)
    for orientation in ("SPL", "RAI"):
        grid = Volume(np.zeros((5, 6, 7), np.int16), axial_affine((5, 6, 7), (4.0, 2.0, 3.0))).oriented(orientation)
        index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
        assert np.isclose(min_jacobian(grid.world(index) @ matrix.T, grid.affine), expected)
    folded = grid.world(index) * [-1.5, 0, 0]
    assert np.isclose(min_jacobian(folded, grid.affine), -0.5)
    folded[2:] = 0
    inside = np.zeros(grid.shape, bool)
    inside[4] = True
    assert np.isclose(min_jacobian(folded, grid.affine, inside), 1.0)
    with pytest.raises(DataError, match="two voxels"):
        min_jacobian(np.zeros((1, 5, 5, 3)), grid.affine)


def test_lungs_and_their_vessels_are_found_in_both_phases() -> None:
    pair = small_pair(5, misregistration_mm=0.0)
    truth = pair.lungs.voxels > 0
    for scan in (pair.nct, pair.ctpa, pair.nct.oriented("LPI")):
        found = lungs(scan)
        assert found is not None
        there = found if scan.orientation == "SPL" else found.transpose(2, 1, 0)[::-1, :, :]
        assert (dice(there, truth) or 0) > 0.9
    vessels = lung_vessels(pair.nct, truth)
    assert pair.vessels.voxels[vessels].mean() > 0.5
    assert not vessels[~truth].any()
    leg = Volume(np.full((20, 20, 20), 50, np.int16), pair.nct.affine)
    assert lungs(leg) is None


def test_quality_falls_with_misregistration_and_is_restored_by_the_known_field() -> None:
    from fmct.registration.register import register

    aligned, shifted = small_pair(5, misregistration_mm=0.0), small_pair(5, misregistration_mm=12.0)
    best = measure(aligned.nct, aligned.ctpa, masks={"heart": aligned.heart.voxels > 0})
    worst = measure(shifted.nct, shifted.ctpa)
    restored = register(shifted.ctpa, shifted.nct, method="given", given=shifted.field_mm)
    mended = measure(shifted.nct, restored.warped, valid=restored.valid, field_mm=restored.field_mm)
    for name in ("lung_dice", "vessel_dice"):
        assert getattr(worst, name) < getattr(mended, name) - 0.05 < getattr(best, name)
    assert (worst.vessel_dice or 0) < 0.6 < (mended.vessel_dice or 0)
    assert (best.heart_hu or 0) > 120
    assert 0 < (mended.min_jacobian or 0) < 1
    assert (mended.overlap or 0) < 1.0
    assert not best.identical
    assert measure(aligned.nct, aligned.nct).identical


def test_what_is_no_chest_ct_is_not_judged_by_lungs() -> None:
    pair = small_pair(5)
    suv = Volume(pair.ctpa.voxels.astype(np.float32), pair.ctpa.affine, "PT", "SUV")
    quality = measure(pair.nct, suv, same_examination=True)
    assert (quality.lung_dice, quality.vessel_dice, quality.min_jacobian) == (None, None, None)
    assert judge(quality).decision == ACCEPT
    with pytest.raises(DataError, match="one grid"):
        measure(pair.nct, Volume(suv.voxels[:5], suv.affine))

import numpy as np
import pytest

from fmct.metrics.froc import froc
from fmct.metrics.lesions import Candidate, MatchedScan, MatchingRule, match_lesions

SPACING = (2.0, 1.0, 1.0)


def volume(*boxes: tuple[tuple[int, int, int], int, float]) -> np.ndarray:
    """Return (12, 24, 24) with cubes: (corner, side, value)."""
    values = np.zeros((12, 24, 24), dtype=np.float32)
    for (z, y, x), side, value in boxes:
        values[z : z + side, y : y + side, x : x + side] = value
    return values


REFERENCE = volume(((2, 2, 2), 3, 1), ((2, 14, 14), 3, 1)) > 0


def test_m6_froc_phantom() -> None:
    """Two lesions; a candidate on the first, a second on the same, and a miss: sensitivity .5, one false positive."""
    values = volume(((2, 2, 2), 2, 0.9), ((5, 5, 5), 1, 0.7), ((8, 18, 2), 2, 0.6))
    scan = match_lesions(values, REFERENCE, SPACING, MatchingRule(tolerance_mm=5, connectivity=6), patient="p")
    assert len(scan.candidates) == 3
    curve = froc([scan])
    assert curve.sensitivity[-1] == 0.5
    assert curve.rate[-1] == 1.0
    assert (curve.sensitivity[0], curve.rate[0]) == (0.5, 0.0)  # the best candidate alone


def test_tolerance_is_in_millimetres_along_every_axis() -> None:
    gap_x, gap_z = volume(((2, 2, 8), 1, 1.0)), volume(((8, 2, 2), 1, 1.0))  # 4 voxels beyond: 4 mm in x, 8 mm in z
    for values, reach in ((gap_x, 4.0), (gap_z, 8.0)):
        hit = match_lesions(values, REFERENCE, SPACING, MatchingRule(tolerance_mm=reach))
        missed = match_lesions(values, REFERENCE, SPACING, MatchingRule(tolerance_mm=reach - 0.01))
        assert hit.candidates[0].hits == (0,)
        assert missed.candidates[0].hits == ()
    overlap = match_lesions(volume(((2, 5, 2), 1, 1.0)), REFERENCE, SPACING, MatchingRule(tolerance_mm=0))
    assert overlap.false_positives() == [1.0]  # touching is not overlapping


def test_a_candidate_over_two_lesions_credits_both() -> None:
    bridge = volume(((2, 2, 2), 3, 0.8)) + 0
    bridge[2, 2:17, 2] = 0.8
    bridge[2, 16, 2:17] = 0.8
    scan = match_lesions(bridge, REFERENCE, SPACING, MatchingRule(tolerance_mm=0))
    assert scan.candidates[0].hits == (0, 1)
    assert scan.best_scores() == pytest.approx([0.8, 0.8])
    assert scan.false_positives() == []


def test_ignore_regions_count_neither_way() -> None:
    values = volume(((8, 18, 2), 2, 0.6), ((2, 2, 2), 2, 0.9))
    ignore = volume(((8, 19, 2), 3, 1), ((2, 2, 2), 2, 1)) > 0
    scan = match_lesions(values, REFERENCE, SPACING, MatchingRule(tolerance_mm=0), ignore=ignore)
    assert scan.false_positives() == []
    assert [c.ignored for c in scan.candidates] == [False, True]  # the hit stays a hit though it is ignored there
    assert len(match_lesions(values, REFERENCE, SPACING, MatchingRule(tolerance_mm=0)).false_positives()) == 1


def test_connectivity_threshold_score_and_least_volume() -> None:
    corners = volume(((2, 2, 2), 1, 0.9), ((3, 3, 3), 1, 0.6), ((8, 8, 8), 1, 0.4))
    for connectivity, parts in ((6, 2), (18, 2), (26, 1)):
        rule = MatchingRule(tolerance_mm=0, connectivity=connectivity)
        assert len(match_lesions(corners, REFERENCE, SPACING, rule).candidates) == parts
    low = match_lesions(corners, REFERENCE, SPACING, MatchingRule(threshold=0.4, tolerance_mm=0))
    assert [c.score for c in low.candidates] == pytest.approx([0.9, 0.4])
    assert [c.volume_mm3 for c in low.candidates] == [4.0, 2.0]
    large = match_lesions(corners, REFERENCE, SPACING, MatchingRule(threshold=0.4, tolerance_mm=0, min_volume_mm3=3))
    assert len(large.candidates) == 1
    graded = volume(((2, 2, 2), 3, 0.5))
    graded[2, 2, 2:5] = (0.7, 0.8, 0.9)
    top = match_lesions(graded, REFERENCE, SPACING, MatchingRule(tolerance_mm=0, score="top10"))
    assert top.candidates[0].score == pytest.approx((0.9 + 0.8 + 0.7) / 3)  # 3 of 27 voxels
    assert "26-connected" in str(MatchingRule())
    with pytest.raises(ValueError, match="connectivity"):
        MatchingRule(connectivity=8)


def scan(patient: str, best: list[float], false: list[float], name: str = "s") -> MatchedScan:
    """Return a scan with one candidate per found lesion (−1: not found) and these false positives."""
    found = [Candidate(s, 1.0, (0, 0, 0), (k,), False) for k, s in enumerate(best) if s >= 0]
    return MatchedScan(
        patient, name, tuple(1.0 for _ in best), (*found, *(Candidate(s, 1.0, (0, 0, 0), (), False) for s in false))
    )


def test_false_positives_are_pooled_over_all_subjects() -> None:
    scans = [scan("a", [0.9, -1], [0.8]), scan("b", [0.5], []), scan("c", [], [0.7, 0.6]), scan("d", [], [])]
    curve = froc(scans, resamples=200)
    table = dict(zip(curve.thresholds.tolist(), zip(curve.sensitivity, curve.rate, strict=True), strict=True))
    assert table[0.9] == (pytest.approx(1 / 3), 0)
    assert table[0.6] == (pytest.approx(1 / 3), pytest.approx(3 / 4))
    assert table[0.5] == (pytest.approx(2 / 3), pytest.approx(3 / 4))
    assert curve.sensitivity_at[0.5].estimate == pytest.approx(1 / 3)
    assert curve.sensitivity_at[1.0].estimate == pytest.approx(2 / 3)
    assert curve.mean.estimate == pytest.approx((3 * (1 / 3) + 4 * (2 / 3)) / 7)
    assert curve.per_negative.estimate == 1.0
    assert curve.precision.estimate == pytest.approx(2 / 5)
    assert (curve.subjects, curve.lesions) == (4, 3)
    assert curve.mean.low is None  # four patients


def test_scans_of_a_patient_share_its_weight_and_intervals_draw_patients() -> None:
    once = [scan(f"p{k}", [0.9 if k % 3 else -1], [0.5] * (k % 2)) for k in range(12)]
    twice = [scan(one.patient, one.best_scores(), one.false_positives(), name) for one in once for name in "ab"]
    first, second = froc(once, resamples=200), froc(twice, resamples=200)
    assert first.mean == second.mean
    assert first.per_subject == second.per_subject
    assert first.mean.low is not None


def test_nothing_predicted_is_a_curve_at_zero() -> None:
    curve = froc([scan("a", [-1], []), scan("b", [], [])])
    assert (curve.sensitivity.tolist(), curve.rate.tolist(), curve.mean.estimate) == ([0.0], [0.0], 0.0)
    assert "n/a" in str(curve.precision)

"""B.13, 20 to 24: components, known answers, the pooled identity, and that order and orientation change nothing."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fmct.errors import ConfigError, DataError
from fmct.lesions.candidates import find_candidates, read_candidates, scored_map, write_candidates
from fmct.lesions.evaluation import (
    PER_SUBJECT,
    POOLED,
    Measure,
    final_froc,
    per_patient,
    pooled_precision,
    score_stage,
    stage_tables,
    table_rows,
)
from fmct.metrics.intervals import t_interval
from fmct.metrics.lesions import MatchingRule, match_lesions
from fmct.phantoms.body import axial_affine
from fmct.volume import Volume

SHAPE = (12, 14, 16)
AFFINE = axial_affine(SHAPE, (3.0, 1.0, 1.0))


def cubes(*places: tuple[int, int, int], side: int = 2, value: float = 1.0) -> np.ndarray:
    out = np.zeros(SHAPE, dtype=np.float32)
    for z, y, x in places:
        out[z : z + side, y : y + side, x : x + side] = value
    return out


def test_connectivity_is_said_and_counts() -> None:
    """B.13, 20: two voxels that touch by a corner are one component at 26 and two at 6."""
    values = cubes((2, 2, 2), (3, 3, 3), side=1)
    for connectivity, count in ((26, 1), (18, 2), (6, 2)):
        labels, found = find_candidates(values, AFFINE, threshold=0.5, connectivity=connectivity)
        assert (len(found), int(labels.max())) == (count, count)
    with pytest.raises(ConfigError, match="6, 18 or 26"):
        find_candidates(values, AFFINE, threshold=0.5, connectivity=8)


def test_a_candidate_knows_its_place_in_mm() -> None:
    values = cubes((2, 4, 6), value=0.6) + cubes((8, 8, 8), side=1, value=0.9)
    labels, found = find_candidates(values, AFFINE, threshold=0.5, patient="p", series="s", split="test")
    assert [c.voxels for c in found] == [8, 1]
    assert [c.volume_mm3 for c in found] == pytest.approx([24.0, 3.0])
    np.testing.assert_allclose(
        [found[0].x_mm, found[0].y_mm, found[0].z_mm], AFFINE[:3, :3] @ [2.5, 4.5, 6.5] + AFFINE[:3, 3], atol=1e-4
    )
    assert found[1].centre == (8, 8, 8)
    scores = scored_map(labels, [found[1]], "detector_score")
    assert scores[8, 8, 8] == pytest.approx(0.9)
    assert np.count_nonzero(scores) == 1


def test_orientation_and_axis_order_change_no_candidate() -> None:
    """B.13, 24: RAS or LPS, the same lesions in the world, whatever their order."""
    values = cubes((2, 4, 6), value=0.6) + cubes((8, 8, 8), value=0.9)
    places = []
    for orientation in ("SPL", "RAS", "LPI"):
        turned = Volume(values, AFFINE, "mask", "fraction").oriented(orientation)
        _, found = find_candidates(turned.voxels, turned.affine, threshold=0.5)
        places.append(sorted((c.x_mm, c.y_mm, c.z_mm, c.volume_mm3, c.detector_score) for c in found))
    np.testing.assert_allclose(places[1], places[0], atol=1e-4)
    np.testing.assert_allclose(places[2], places[0], atol=1e-4)


def test_the_table_comes_back(tmp_path: Path) -> None:
    _, found = find_candidates(cubes((2, 4, 6)), AFFINE, threshold=0.5, patient="p", series="s", split="test")
    given = [found[0].judged(0.25, threshold=0.5), dataclasses.replace(found[0], candidate=2).decided(True, "")]
    assert given[0].reason == "discriminator: score 0.25 is under 0.5"
    write_candidates(tmp_path / "c.csv", given)
    back = read_candidates(tmp_path / "c.csv")
    assert back[0] == given[0]
    assert np.isnan(back[1].discriminator_score)
    write_candidates(tmp_path / "none.csv", [])
    assert read_candidates(tmp_path / "none.csv") == []
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column"):
        read_candidates(tmp_path / "other.csv")


def matched(values: np.ndarray, truth: np.ndarray, patient: str = "p", **rule: object) -> object:
    chosen = MatchingRule(threshold=0.1, tolerance_mm=0.0, **rule)  # type: ignore[arg-type]
    return match_lesions(values, truth > 0, (3.0, 1.0, 1.0), chosen, patient=patient)


def bridge() -> np.ndarray:
    values = np.zeros(SHAPE, dtype=np.float32)
    values[2:4, 2:12, 2:4] = 0.8
    return values


def test_cases_with_known_answers() -> None:
    """B.13, 21: one prediction over two truths; two on one; empty/empty; no truth and three calls; all missed."""
    two = cubes((2, 2, 2), (2, 9, 2))
    strict, pooled = matched(bridge(), two, one_to_one=True), matched(bridge(), two)
    assert [np.isfinite(s.best_scores()).sum() for s in (strict, pooled)] == [1, 2]  # type: ignore[attr-defined]
    doubled = cubes((2, 2, 2), side=1, value=0.9) + cubes((2, 2, 4), side=1, value=0.5)
    one = cubes((2, 2, 2), side=3)
    assert matched(doubled, one).false_positives() == []  # type: ignore[attr-defined]
    assert matched(doubled, one, duplicates="fp").false_positives() == [0.5]  # type: ignore[attr-defined]
    assert matched(doubled, one, one_to_one=True).false_positives() == []  # type: ignore[attr-defined]
    three = cubes((1, 1, 1), (5, 5, 5), (9, 9, 9), value=0.7)
    scans = [
        matched(cubes(), cubes(), "empty"), matched(three, cubes(), "calls"), matched(cubes(), two, "missed"),
    ]  # fmt: skip
    scores = score_stage("s", scans, resamples=100)  # type: ignore[arg-type]
    assert (scores.subjects, scores.lesions, scores.found, scores.false) == (3, 2, 0, 3)
    tpr, rate, precision = (m.value.estimate for m in scores.pooled)
    assert (tpr, rate, precision) == (0.0, 1.0, 0.0)
    macro = scores.per_subject
    assert (macro[0].value.estimate, macro[0].value.n) == (0.0, 1)  # TPR of the one subject with lesions
    assert macro[1].value.estimate == 1.0  # FP of all three
    each = per_patient(scans)  # type: ignore[arg-type]
    assert each["f1"] == {"empty": 1.0, "calls": 0.0, "missed": 0.0}
    assert set(each["tpr"]) == {"missed"}


def test_a_distance_rule_takes_the_nearer_lesion_and_luna16s_rule_the_radius() -> None:
    """B.13, 21: where two candidates compete, scores choose, and each takes the nearest lesion that is left."""
    two = cubes((2, 2, 2), (2, 2, 10))  # centres 8 mm apart in x
    rule = MatchingRule(threshold=0.1, hit="centre", tolerance_mm=6.0, one_to_one=True)

    def hits(*candidates: tuple[int, float]) -> list[tuple[int, ...]]:
        """Return what candidates at (x, score) hit, from left to right."""
        values = sum(cubes((2, 2, x), side=1, value=score) for x, score in candidates)
        found = match_lesions(np.asarray(values), two > 0, (1.0, 1.0, 1.0), rule).candidates
        return [c.hits for c in sorted(found, key=lambda c: c.centre[2])]

    assert hits((8, 0.9)) == [(1,)]  # 4.5 and 2.5 mm away
    assert hits((5, 0.9)) == [(0,)]
    assert hits((5, 0.3), (7, 0.9)) == [(0,), (1,)]
    assert hits((5, 0.9), (7, 0.3)) == [(0,), (1,)]
    assert hits((8, 0.9), (12, 0.3)) == [(1,), ()]  # the nearer of the two scores less, and comes second
    assert hits((7, 0.9), (8, 0.3)) == [(1,)]  # voxels that touch are one candidate
    ball = cubes((4, 4, 4), side=4)
    inside, beside = cubes((5, 5, 5), side=1), cubes((5, 5, 8), side=1)
    radius = MatchingRule(threshold=0.1, hit="radius")
    assert match_lesions(inside, ball > 0, (1, 1, 1), radius).candidates[0].hits == (0,)
    assert match_lesions(beside, ball > 0, (1, 1, 1), radius).candidates[0].hits == ()
    assert "within the radius" in str(radius)
    with pytest.raises(ValueError, match="hit"):
        MatchingRule(hit="iou")


def scans_of(seed: int, count: int = 12) -> list:
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        truth, values = np.zeros(SHAPE), np.zeros(SHAPE, dtype=np.float32)
        for place in random.permutation(
            np.array([(z, y, x) for z in (1, 5, 9) for y in (1, 6, 11) for x in (1, 6, 11)])
        )[: random.integers(1, 6)]:
            kind = random.integers(3)
            box = tuple(slice(p, p + 2) for p in place)
            truth[box] = kind > 0
            values[box] = random.uniform(0.2, 1) * (kind != 1)
        found.append(matched(values, truth * (number % 3 > 0), f"p{number}"))
    return found


def test_the_pooled_identity_holds_and_is_checked() -> None:
    """B.13, 22: precision = TPR·N / (TPR·N + FPavg·S); the paper's own row as an example."""
    scores = score_stage("s", scans_of(0), resamples=100)
    tpr, rate, precision = (m.value.estimate for m in scores.pooled)
    assert tpr is not None
    assert rate is not None
    assert 0 < tpr < 1
    assert precision == pytest.approx(pooled_precision(tpr, scores.lesions, rate, scores.subjects))
    assert precision == pytest.approx(scores.found / (scores.found + scores.false))
    assert pooled_precision(0.93, 186, 1.5, 78) == pytest.approx(0.597, abs=1e-3)  # UK Biobank, reported 59 %
    assert np.isnan(pooled_precision(0.0, 5, 0.0, 3))


def test_pooled_and_per_subject_values_never_share_a_table() -> None:
    """B.13, 22."""
    scores = score_stage("detection", scans_of(1), resamples=100)
    text = stage_tables([scores], title="SYNTHETIC")
    assert text.startswith("SYNTHETIC. 12 subjects")
    assert "stage (pooled)" in text
    assert "stage (per subject)" in text
    value = t_interval([1.0, 2.0])
    with pytest.raises(DataError, match="two tables"):
        table_rows({"a": [Measure("TPR", POOLED, value)], "b": [Measure("TPR", PER_SUBJECT, value)]})
    with pytest.raises(DataError, match="no series"):
        score_stage("detection", [])


def test_ranks_alone_make_the_froc() -> None:
    """B.13, 23 and 24: rising maps of scores, and the candidates' order, change nothing; perfect is 1, empty 0."""
    scans = scans_of(2)
    changed = [
        dataclasses.replace(
            scan, candidates=tuple(dataclasses.replace(c, score=5 + c.score**3) for c in scan.candidates[::-1])
        )
        for scan in scans
    ]
    first, second = final_froc(scans, resamples=100), final_froc(changed, resamples=100)
    np.testing.assert_allclose(first.sensitivity, second.sensitivity)
    np.testing.assert_allclose(first.rate, second.rate)
    assert (np.diff(first.sensitivity) >= 0).all()
    truth = cubes((2, 2, 2), (6, 6, 6))
    assert final_froc([matched(truth, truth)], resamples=100).mean.estimate == 1.0  # type: ignore[list-item]
    assert final_froc([matched(cubes(), truth)], resamples=100).mean.estimate == 0.0  # type: ignore[list-item]


def test_equal_scores_are_one_point_of_the_curve() -> None:
    """B.13, 23: a hit and a false positive of one score cannot be told apart, so neither comes without the other."""
    truth = cubes((2, 2, 2), (6, 6, 6))
    values = cubes((2, 2, 2), (9, 11, 2), value=0.7) + cubes((6, 6, 6), value=0.4)
    curve = final_froc([matched(values, truth)], resamples=100)  # type: ignore[list-item]
    assert curve.thresholds.tolist() == pytest.approx([0.7, 0.4])
    assert curve.sensitivity.tolist() == [0.5, 1.0]
    assert curve.rate.tolist() == [1.0, 1.0]
    assert curve.sensitivity_all.estimate == curve.sensitivity[-1] == 1.0  # every candidate: the largest point
    assert curve.sensitivity_at[0.5].estimate == 0.0


def test_equal_scans_of_a_subject_count_once() -> None:
    scans = scans_of(3)
    twice = [dataclasses.replace(scan, scan=name) for scan in scans for name in "ab"]
    one, two = score_stage("s", scans, resamples=100), score_stage("s", twice, resamples=100)
    assert [m.value.estimate for m in one.pooled] == pytest.approx([m.value.estimate for m in two.pooled])

from pathlib import Path

import numpy as np
import pytest
import torch

from fmct.errors import ArtefactError
from fmct.probes.cohort import Cohort, Fold
from fmct.probes.location import pair_features, r2_against, score_pairs, statistics_features
from fmct.probes.location_pairs import (
    PairSettings,
    body_share,
    crop_voxels,
    draw_pairs,
    load_pairs,
    save_pairs,
)

SETTINGS = PairSettings(crop=(16, 16, 16), spacing_mm=(3.0, 3.0, 3.0), body_above=-500.0, pairs=20, seed=0)


def scan(seed: int, shape: tuple[int, int, int] = (60, 50, 40)) -> np.ndarray:
    random = np.random.default_rng(seed)
    hu = random.normal(40, 20, shape).astype(np.float32)
    hu[:, :8] = -1000
    return hu


def test_crops_are_about_48_mm_and_divide_by_the_patch() -> None:
    assert crop_voxels((3, 3, 3), (4, 4, 4)) == (16, 16, 16)
    assert crop_voxels((1, 1, 1), (16, 16, 16)) == (48, 48, 48)
    assert crop_voxels((5, 0.7, 0.7), (1, 14, 14)) == (10, 70, 70)
    assert crop_voxels((10, 10, 10), (16, 16, 16)) == (16, 16, 16)


def test_body_share_is_a_mean_over_each_crop() -> None:
    body = np.random.default_rng(0).random((9, 8, 7)) < 0.4
    share = body_share(body, (4, 3, 5))
    assert share.shape == (6, 6, 3)
    for z, y, x in np.ndindex(share.shape):
        assert share[z, y, x] == pytest.approx(body[z : z + 4, y : y + 3, x : x + 5].mean())


def test_pairs_lie_inside_in_the_body_and_apart() -> None:
    hu = scan(0)
    pairs = draw_pairs("entry", "patient", hu, SETTINGS)
    assert pairs is not None
    assert len(pairs.first) == 20
    assert pairs.counted == (True, True, True)
    for a, b, offset in zip(pairs.first, pairs.second, pairs.offset_mm, strict=True):
        for start in (a, b):
            crop = hu[tuple(slice(s, s + 16) for s in start)]
            assert crop.shape == (16, 16, 16)
            assert (crop > -500).mean() >= 0.7
        assert np.abs(b - a).max() >= 16
        np.testing.assert_allclose(offset, (b - a) * 3.0)
    again = draw_pairs("entry", "patient", hu, SETTINGS)
    assert again is not None
    np.testing.assert_array_equal(pairs.first, again.first)


def test_short_axes_do_not_count_and_short_series_have_no_pairs() -> None:
    pairs = draw_pairs("entry", "patient", scan(1, (31, 32 + 8, 40)), SETTINGS)
    assert pairs is not None
    assert pairs.counted == (False, True, True)
    assert draw_pairs("entry", "patient", scan(1, (31, 31, 31)), SETTINGS) is None
    assert draw_pairs("entry", "patient", scan(1, (12, 60, 60)), SETTINGS) is None
    assert draw_pairs("entry", "patient", np.full((60, 60, 60), -1000.0), SETTINGS) is None


def test_z_stays_within_a_body_region() -> None:
    pairs = draw_pairs("entry", "patient", scan(2, (300, 24, 24)), SETTINGS)
    assert pairs is not None
    assert np.abs(pairs.offset_mm[:, 0]).max() <= 200
    assert np.abs(pairs.offset_mm[:, 0]).max() > 120


def test_stored_pairs_come_back_and_others_are_refused(tmp_path: Path) -> None:
    drawn = [p for p in (draw_pairs(f"e{k}", f"p{k}", scan(k), SETTINGS) for k in range(2)) if p]
    save_pairs(tmp_path / "pairs.json", drawn, SETTINGS, "store")
    loaded = load_pairs(tmp_path / "pairs.json", SETTINGS, "store")
    for a, b in zip(drawn, loaded, strict=True):
        assert (a.entry, a.patient, a.counted) == (b.entry, b.patient, b.counted)
        np.testing.assert_array_equal(a.offset_mm, b.offset_mm)
    with pytest.raises(ArtefactError, match="another store or with other settings"):
        load_pairs(tmp_path / "pairs.json", SETTINGS, "another store")


def series_and_crops(count: int) -> tuple[list, dict[str, np.ndarray]]:
    """Return pairs, and crops whose single voxel holds the crop's place: an encoder could not do better."""
    series, crops = [], {}
    for k in range(count):
        pairs = draw_pairs(f"e{k}", f"p{k}", scan(k), SETTINGS)
        assert pairs is not None
        series.append(pairs)
        crops[f"e{k}"] = np.stack([pairs.first, pairs.second]).astype(np.float32)[..., None, None]
    return series, crops


def test_features_that_know_the_place_score_one_and_noise_scores_nothing() -> None:
    series, crops = series_and_crops(10)
    names = [p.patient for p in series]
    cohort = Cohort(
        tuple(Fold(tuple(n for n in names if n not in half), half) for half in (tuple(names[:5]), tuple(names[5:])))
    )
    known = pair_features(lambda x: x.flatten(1), crops)
    score, by_axis = score_pairs(known, series, cohort)
    assert min(score.values()) > 0.99
    assert set(by_axis) == {"z", "y", "x"}
    noise = torch.Generator().manual_seed(0)
    blind, _ = score_pairs(pair_features(lambda x: torch.randn(len(x), 10, generator=noise), crops), series, cohort)
    assert -0.2 < np.mean(list(blind.values())) < 0.05
    assert len(score) == 10


def test_difference_is_second_minus_first() -> None:
    series, crops = series_and_crops(1)
    features = pair_features(lambda x: x.flatten(1), crops)["e0"]
    np.testing.assert_allclose(features * 3, series[0].offset_mm)


def test_statistics_are_those_of_the_crops() -> None:
    crops = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 4)).astype(np.float32)
    features = statistics_features({"a": crops})["a"]
    for k in range(3):
        first, second = crops[0, k], crops[1, k]
        assert features[k, 0] == pytest.approx(second.mean() - first.mean(), abs=1e-6)
        assert features[k, 4] == pytest.approx(np.median(second) - np.median(first), abs=1e-6)


def test_r2_is_against_the_constant() -> None:
    truth = np.array([1.0, 2.0, 3.0])
    assert r2_against(truth, truth, 0.0) == 1
    assert r2_against(truth, np.full(3, 2.0), 2.0) == 0
    assert r2_against(np.zeros(3), truth, 0.0) is None

"""The pretraining hazard's parts: pairs of equal mean, vessels without bone, a probe that can win and lose."""

import numpy as np
import pytest

from fmct.contrast.hazard import FALL, edit, features_of, make_pairs, mean_hu, probe_pairs, verdict, vessel_mask
from fmct.errors import DataError
from fmct.experiment.contrast_hazard import ARMS, OBJECTIVE, HazardConfig, means, run_hazard, table
from fmct.phantoms.body import axial_affine
from fmct.volume import Volume

SPACING = (3.0, 2.0, 2.0)


def enhanced(seed: int = 0, *, blood: float = 250.0) -> Volume:
    """Return a trunk's middle: soft tissue, an aorta of blood, and a bigger vertebra, spongy in a dense shell."""
    shape = (16, 64, 64)
    random = np.random.default_rng(seed)
    y, x = ((np.arange(n) - (n - 1) / 2) * 2.0 for n in shape[1:])
    hu = np.full(shape, 50.0)
    hu[:, np.hypot(y[:, None], x[None, :]) > 60] = -1000
    from_vertebra, from_aorta = np.hypot(y[:, None] - 25, x[None, :]), np.hypot(y[:, None] + 15, x[None, :] - 10)
    hu[:, from_vertebra < 20] = 700
    hu[:, from_vertebra < 16] = 200
    hu[:, from_aorta < 13] = blood
    hu += random.normal(0, 8, shape)
    return Volume(np.rint(np.maximum(hu, -1024)).astype(np.int16), axial_affine(shape, SPACING))


def test_vessel_is_the_aorta_and_not_the_larger_vertebra() -> None:
    volume = enhanced()
    mask = vessel_mask(volume)
    y, x = ((np.arange(64) - 31.5) * 2.0 for _ in range(2))
    aorta = np.broadcast_to(np.hypot(y[:, None] + 15, x[None, :] - 10) < 13, mask.shape)
    assert 2 * (mask & aorta).sum() / (mask.sum() + aorta.sum()) > 0.9
    assert not mask[:, np.hypot(y[:, None] - 25, x[None, :]) < 20].any()


def test_a_native_scan_has_no_vessel_to_suppress() -> None:
    with pytest.raises(DataError, match="is this scan enhanced"):
        vessel_mask(enhanced(blood=45.0))


def test_pairs_share_their_mean_and_differ_as_said() -> None:
    volume = enhanced()
    mask = vessel_mask(volume)
    random = np.random.default_rng(0)
    hu = volume.voxels.astype(np.float32)
    edited = edit(hu, mask, volume.spacing, random)
    assert edited is not None
    suppressed, control = edited
    assert suppressed.astype(np.int64).sum() == control.astype(np.int64).sum()
    assert np.array_equal(suppressed[~mask], volume.voxels[~mask])
    assert np.array_equal(control[mask], volume.voxels[mask])
    assert abs(suppressed[mask].mean() - 40) < 1
    assert 8 < suppressed[mask].std() < 16
    changed = control != volume.voxels
    assert changed.sum() == mask.sum()  # an equal volume, all of it soft tissue
    assert ((volume.voxels[changed] > -40) & (volume.voxels[changed] < 140)).all()
    assert edit(hu, np.zeros_like(mask), volume.spacing, random) is None


def test_pairs_are_seeded_crops_that_show_vessels() -> None:
    volume = enhanced()
    pairs = make_pairs("a", volume, side_mm=(30, 60, 60), count=3, seed=1)
    again = make_pairs("a", volume, side_mm=(30, 60, 60), count=3, seed=1)
    assert all(np.array_equal(p.control.voxels, q.control.voxels) for p, q in zip(pairs, again, strict=True))
    assert {p.control.shape for p in pairs} == {(10, 30, 30)}
    at = volume.index(pairs[0].control.affine[:3, 3]).round().astype(int)
    box = volume.voxels[tuple(slice(a, a + n) for a, n in zip(at, (10, 30, 30), strict=True))]
    assert (pairs[0].control.voxels == box).mean() > 0.5
    with pytest.raises(DataError, match="show vessels"):
        make_pairs("a", volume, side_mm=(3, 4, 4), count=3, seed=1)


def test_probe_wins_with_vessels_and_loses_with_the_mean() -> None:
    volumes = [enhanced(n, blood=330.0) for n in range(3)]
    pairs = [p for n, v in enumerate(volumes) for p in make_pairs(str(n), v, side_mm=(30, 60, 60), count=8, seed=n)]

    def bright(volume: Volume) -> np.ndarray:
        return np.array([((volume.voxels > 300) & (volume.voxels < 360)).mean()])

    assert probe_pairs(features_of(pairs, bright))["auroc"] == 1.0
    lost = probe_pairs(features_of(pairs, mean_hu))
    assert abs(lost["auroc"] - 0.5) < 0.05  # equal means: nothing to see
    assert set(lost["by_series"]) == {"0", "1", "2"}
    with pytest.raises(DataError, match="two enhanced series"):
        probe_pairs(features_of(pairs[:8], bright))


def test_verdict_needs_the_jitter_to_fall() -> None:
    fine = {"default": 0.97, "jitter": 0.7, "random": 0.85, "mean HU": 0.5}
    assert "reached" in verdict(fine)[-1]
    assert "NOT REACHED" in verdict({**fine, "default": 0.92})[-1]
    assert any("DO NOT BEAT random" in line for line in verdict({**fine, "random": 0.98}))
    assert "SAYS NOTHING" in verdict({**fine, "jitter": 0.97 - FALL + 0.01})[0]


def test_arms_differ_in_the_views_alone(tmp_path) -> None:
    from fmct.config import build, find_config, import_recipe, read_tree

    recipe = import_recipe("pretrain.dino")
    configs = {
        arm: build(
            recipe.Config,
            read_tree([str(find_config("pretrain/demo"))], ["output=x", "store=y", *OBJECTIVE, *words]),
        )
        for arm, words in ARMS.items()
    }
    looks = {arm: c.views.global_views.appearance[0] for arm, c in configs.items()}
    assert looks["default"].shift_hu.range == [-10.0, 10.0]
    assert looks["jitter"].shift_hu.range == [-300.0, 300.0]
    assert looks["jitter"].noise_hu == looks["default"].noise_hu
    assert configs["jitter"].objective == configs["default"].objective
    assert configs["jitter"].objective.weights.pixel == 0


def test_table_averages_seeds_and_the_command_goes_on(tmp_path, monkeypatch) -> None:
    cells = [
        {"arm": arm, "auroc": auroc, "ordered": 1.0, "by_series": {"a": auroc, "b": auroc}}
        for arm, auroc in (("default", 0.9), ("default", 1.0), ("jitter", 0.6))
    ]
    assert means(cells) == {"default": 0.95, "jitter": 0.6}
    assert "| default (2 seeds) | 0.950 | 1.000 | 0.950 | 0.950 |" in table(cells, left=1, pairs=3)
    from fmct.experiment import contrast_hazard

    ran = []
    found = {"auroc": 0.9, "by_series": {"a": 0.9}, "ordered": 1.0}
    monkeypatch.setattr(contrast_hazard._Runner, "run", lambda _, cell: ran.append(cell.arm) or found)
    text = run_hazard(tmp_path, tmp_path / "out", HazardConfig())
    assert ran == ["default", "jitter", "random", "mean HU"]
    assert "SAYS NOTHING" in text
    run_hazard(tmp_path, tmp_path / "out", HazardConfig())
    assert len(ran) == 4
    assert (tmp_path / "out" / "table.md").read_text().startswith("Enhanced vessels")

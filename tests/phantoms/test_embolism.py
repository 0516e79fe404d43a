"""SYNTHETIC pairs: the generator of the acceptance checks (cpmn-pe 6.9)."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from fmct.data.pair_table import read_pair_table
from fmct.errors import DataError
from fmct.io import read_volume
from fmct.io.masks import read_mask
from fmct.phantoms.cohort import main
from fmct.phantoms.embolism import TITLE, phantom_pair
from fmct.phantoms.vessels import LEAF_RADIUS_MM, tree
from fmct.registration.pair_quality import min_jacobian
from fmct.registration.warping import warp
from fmct.table_files import read_rows
from tests.phantoms.phantom_pairs import SHAPE, SPACING, small_pair


def test_a_pair_of_64_voxels_a_side_depends_on_its_seed_alone() -> None:
    first, again = phantom_pair(3), phantom_pair(3)
    for name in ("nct", "ctpa", "mask", "heart", "vessels", "lungs", "valid"):
        assert np.array_equal(getattr(first, name).voxels, getattr(again, name).voxels), name
    assert np.array_equal(first.field_mm, again.field_mm)
    assert not np.array_equal(small_pair(5).nct.voxels, small_pair(7).nct.voxels)
    assert first.nct.shape == (64, 64, 64)
    assert first.nct.orientation == "SPL"
    assert first.nct.voxels.dtype == np.int16
    assert first.label == 1


def test_blood_clot_and_lung_have_the_stated_hu_in_both_phases() -> None:
    pair = phantom_pair(
        2, noise_hu=0, misregistration_mm=0, embolus_radius_mm=6, embolus_length_mm=30, venous_share=0.5
    )
    # Off the boundaries, where a voxel holds two tissues.
    clot = pair.mask.voxels > 0
    arteries = ndimage.binary_erosion((pair.arteries.voxels > 0) & ~ndimage.binary_dilation(clot))
    veins = ndimage.binary_erosion((pair.veins.voxels > 0) & (pair.arteries.voxels == 0))
    clot = ndimage.binary_erosion(clot)
    for where, plain, bright in ((arteries, 40, 300), (veins, 40, 170), (clot, 65, 50)):
        assert abs(np.median(pair.nct.voxels[where]) - plain) <= 2
        assert abs(np.median(pair.ctpa.voxels[where]) - bright) <= 2
    lung = (pair.lungs.voxels > 0) & (pair.vessels.voxels == 0)
    assert abs(np.median(pair.nct.voxels[lung]) + 850) < 30
    assert np.array_equal(pair.field_mm, np.zeros_like(pair.field_mm))


def test_noise_has_the_standard_deviation_asked_for() -> None:
    loud, silent = small_pair(noise_hu=25.0), small_pair(noise_hu=0.0)
    assert abs((loud.nct.voxels - silent.nct.voxels)[:, 12:28, 12:28].std() - 25) < 1.5


def test_emboli_lie_in_arteries_only_and_a_negative_is_the_same_person_without_them() -> None:
    positive = small_pair(7)
    negative = phantom_pair(7, shape=SHAPE, spacing_mm=SPACING, positive=False)
    clot = positive.mask.voxels > 0
    assert clot.any()
    assert (positive.arteries.voxels[clot] == 1).mean() > 0.9
    assert negative.label == 0
    assert not negative.mask.voxels.any()
    assert np.array_equal(negative.vessels.voxels, positive.vessels.voxels)
    changed = positive.nct.voxels != negative.nct.voxels
    far = np.ones(clot.shape, dtype=bool)
    for z, y, x in np.argwhere(clot):
        far[max(z - 2, 0) : z + 3, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = False
    assert changed[clot].any()
    assert not changed[far].any()


def test_an_embolus_has_the_size_asked_for() -> None:
    def volume_mm3(radius: float, length: float) -> float:
        fine = phantom_pair(
            1,
            shape=(64, 64, 64),
            spacing_mm=(2.8, 2.8, 2.8),
            misregistration_mm=0,
            emboli=1,
            embolus_radius_mm=radius,
            embolus_length_mm=length,
        )
        return float(fine.mask.voxels.sum()) * 2.8**3

    expected = np.pi * 5**2 * 14 + 4 / 3 * np.pi * 5**3  # a rod with round ends; downstream the lumen may be narrower
    assert 0.55 < volume_mm3(5, 14) / expected < 1.3
    assert volume_mm3(3, 14) < 0.6 * volume_mm3(5, 14) < 0.6 * 1.3 * expected


def test_impossible_phantoms_are_explained() -> None:
    with pytest.raises(DataError, match="widest artery"):
        phantom_pair(1, shape=SHAPE, spacing_mm=SPACING, embolus_radius_mm=40)
    with pytest.raises(DataError, match="fills no voxel"):
        phantom_pair(1, shape=SHAPE, spacing_mm=SPACING, emboli=1, embolus_radius_mm=0.2, embolus_length_mm=1)
    with pytest.raises(DataError, match="emboli=2"):
        phantom_pair(1, shape=SHAPE, spacing_mm=SPACING, positive=False, emboli=2)
    with pytest.raises(DataError, match="≥ 8"):
        phantom_pair(1, shape=(4, 40, 40), spacing_mm=SPACING)


def test_the_known_field_brings_the_angiogram_onto_the_scan() -> None:
    pair = small_pair(5, misregistration_mm=10.0, noise_hu=0.0, enhancement_hu=0.0)
    length = np.linalg.norm(pair.field_mm, axis=-1)
    assert 7 < length.max() <= 10
    assert min_jacobian(pair.field_mm, pair.nct.affine) > 0.2
    brought = warp(pair.ctpa, pair.nct, pair.field_mm)
    assert np.array_equal(brought.valid, pair.valid.voxels > 0)
    inside = brought.valid & (pair.lungs.voxels > 0)

    def apart(voxels: np.ndarray) -> float:
        return float(np.abs(voxels.astype(float) - pair.nct.voxels)[inside].mean())

    assert apart(brought.volume.voxels) < 0.6 * apart(pair.ctpa.voxels)
    backwards = warp(pair.ctpa, pair.nct, -pair.field_mm)
    assert apart(backwards.volume.voxels) > apart(pair.ctpa.voxels)


def test_a_phantom_is_laid_out_like_a_thorax() -> None:
    pair = small_pair(5, misregistration_mm=0.0, noise_hu=0.0)
    voxels = pair.nct.voxels
    places = {name: np.argwhere(getattr(pair, name).voxels > 0).mean(axis=0) for name in ("heart", "lungs", "arteries")}
    assert places["heart"][2] > SHAPE[2] / 2 + 0.5  # x grows to the left, where the heart lies
    assert places["heart"][0] < places["lungs"][0]  # z grows upwards
    bone = np.argwhere(voxels > 350)
    assert np.median(bone[np.abs(bone[:, 2] - 20) < 3][:, 1]) > SHAPE[1] / 2 + 4  # the spine is behind
    sides = [(pair.lungs.voxels[..., half] > 0).sum() for half in (slice(0, 20), slice(20, None))]
    assert min(sides) > 1000
    assert 0.6 < sides[1] / sides[0] < 1.0  # the heart takes its place from the left lung
    for side in (slice(0, 16), slice(24, None)):
        assert pair.arteries.voxels[..., side].any()
        assert pair.veins.voxels[..., side].any()


def test_the_same_seed_is_the_same_person_on_a_finer_grid() -> None:
    coarse = small_pair(6, noise_hu=0.0).nct.voxels
    fine = phantom_pair(6, shape=(64, 80, 80), spacing_mm=(2.5, 2.5, 2.5), noise_hu=0).nct.voxels
    means = fine.reshape(32, 2, 40, 2, 40, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(means.ravel(), coarse.ravel())[0, 1] > 0.97


def test_a_vessel_tree_is_connected_reaches_its_leaves_and_keeps_third_powers() -> None:
    random = np.random.default_rng(0)
    leaves = random.uniform(10, 60, (9, 3))
    found = tree(np.zeros(3), leaves, random)
    begins = found.parent < 0
    assert begins.sum() == 1
    assert np.array_equal(found.start[~begins], found.end[found.parent[~begins]])
    tips = found.end[~np.isin(np.arange(len(found)), found.parent)]
    assert {tuple(p) for p in np.round(tips, 6)} == {tuple(p) for p in np.round(leaves, 6)}
    assert np.isclose(found.radius[begins][0, 0], LEAF_RADIUS_MM * 9 ** (1 / 3))


def test_the_command_writes_a_cohort_titled_synthetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """H3: synthetic results are labelled synthetic, beginning with the data."""
    folder = tmp_path / "cohort"
    command = [str(folder), "--patients", "4", "--seed", "2", "--side", "28", "--spacing", "6"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"# {TITLE}")
    assert (folder / "README.md").read_text().startswith("# SYNTHETIC")
    labels = read_rows(folder / "labels.csv")
    assert [row["pe"] for row in labels].count("1") == 2
    assert {row["source"] for row in labels} == {"SYNTHETIC"}
    rows = read_pair_table(folder / "pairs.csv")
    assert [row.patient for row in rows] == [row["patient"] for row in labels]
    for row, label in zip(rows, labels, strict=True):
        scan = read_volume(folder / "scans" / row.nct)
        assert scan.shape == (28, 28, 28)
        assert row.nct == label["series"]
        assert bool(row.mask) == (label["pe"] == "1")
        if row.mask:
            assert read_mask(folder / "masks" / row.mask).voxels.any()
        if row.ctpa:
            assert read_volume(folder / "scans" / row.ctpa).shape == scan.shape
            assert row.quality.heart_hu is not None
            assert row.quality.heart_hu > 120
    assert main(command) == 2
    assert "not empty" in capsys.readouterr().err

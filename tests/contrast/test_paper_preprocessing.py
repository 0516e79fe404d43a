"""The published contrast system's preprocessing, against volumes whose slices are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmct import config as configuration
from fmct.contrast.paper_preprocessing import (
    body_centre,
    check_axial,
    crop,
    kept_slices,
    prepare,
    slice_numbers,
    windowed,
)
from fmct.contrast.paper_registration import (
    OUTSIDE_HU,
    Aligned,
    Template,
    align,
    check_template,
    read_template,
    respaced,
)
from fmct.contrast.paper_settings import BodyPartProfile, LegacySwitches, PaperInput, Preparation
from fmct.errors import ConfigError, DataError, Refusal
from fmct.phantoms.body import axial_affine
from fmct.volume import Volume
from tests.contrast.paper_phantoms import PROFILE, REGISTRATION, SHAPE, SPACING, chest, neck, save, settings


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return read_template(save(neck(99), tmp_path_factory.mktemp("template") / "neck.nii.gz"), SPACING)


def shipped(name: str) -> BodyPartProfile:
    """Return the profile of a shipped configuration."""
    tree = configuration.read_tree([f"finetune/{name}.yaml"])
    return configuration.build(PaperInput, tree["input"]).profile


def on_grid(shape: tuple[int, int, int], hu: np.ndarray) -> tuple[Aligned, Template]:
    """Return a scan that lies on a template's grid of 1 × 1 × 3 mm as it is."""
    affine = axial_affine(shape, (3.0, 1.0, 1.0))
    aligned = Aligned(hu.astype(np.float32), np.ones(shape, dtype=bool), np.eye(4), 0.0)
    return aligned, Template("made.nii.gz", "", np.zeros(shape, np.int16), affine)


@pytest.mark.parametrize(("name", "slices"), [("contrast_paper", 66), ("contrast_paper_chest", 70)])
def test_profiles_keep_the_published_slices(name: str, slices: int) -> None:
    """Acceptance 2: a volume at 1 × 1 × 3 mm gives 66 (head-neck) or 70 (chest) slices of 192², float32 in [0, 1]."""
    profile = shipped(name)
    assert profile.slices == slices
    depth, side = profile.slab + 6, 200
    shape = (depth, side, side)
    hu = np.broadcast_to(np.arange(depth)[:, None, None] - 100.0, shape)
    aligned, template = on_grid(shape, hu)
    open_profile = replace(profile, area_cm2=[0.0, 1e6], lung_share=[-1.0, 1.0])
    prepared = kept_slices(aligned, template, Preparation([3.0, 1.0, 1.0], open_profile))
    assert prepared.slices.shape == (slices, 192, 192)
    assert prepared.slices.dtype == np.float32
    assert prepared.slices.min() >= 0
    assert prepared.slices.max() <= 1
    # counted from the top end: array slice depth − slab + first … depth − slab + last
    expected = np.arange(depth)[depth - profile.slab :][profile.first : profile.last + 1]
    np.testing.assert_array_equal(slice_numbers(depth, profile), expected)
    np.testing.assert_allclose(prepared.slices[:, 96, 96], (expected - 100 + 200) / 400, atol=1e-6)


def test_fixed_values_are_hu_and_the_legacy_range_is_the_scans_own() -> None:
    """Acceptance 3: −200, 0, 200 HU are 0, ½, 1 for every scan; legacy maps a scan's own −100 to 0 and 100 to 1."""
    wide, narrow = np.array([[-3000.0, -200, 0, 200, 900]]), np.array([[-100.0, 0, 100]])
    np.testing.assert_allclose(windowed(wide, LegacySwitches()), [[0, 0, 0.5, 1, 1]])
    np.testing.assert_allclose(windowed(narrow, LegacySwitches()), [[0.25, 0.5, 0.75]])
    stretched = windowed(narrow, LegacySwitches(scan_range=True))
    np.testing.assert_allclose(stretched, [[0, 0.5, 1]])
    assert not np.allclose(stretched, windowed(narrow, LegacySwitches()))
    # A-D5: above 700 HU becomes water in legacy mode alone
    dense = windowed(wide, LegacySwitches(dense_as_water=True))
    np.testing.assert_allclose(dense, [[0, 0, 0.5, 1, 0.5]])


def test_a_body_off_centre_is_centred_and_legacy_swaps_its_axes() -> None:
    """Acceptance 4: a body shifted by (dx, dy), dx ≠ dy, is centred; legacy swaps it. A-D3: at any border."""
    hu = np.full((14, 60, 60), -1000.0)
    hu[:, 8:28, 40:56] = 40  # rows 8 to 27, columns 40 to 55: centre (17.5, 47.5)
    inside = np.ones(hu.shape, dtype=bool)
    assert body_centre(hu, PROFILE) == (17.5, 47.5)
    centred, valid = crop(hu, inside, PROFILE)
    rows, columns = np.nonzero(centred[0] > 0)
    assert (rows.mean(), columns.mean()) == (15.5, 15.5)
    assert len(rows) == 20 * 16  # nothing is cut, though the square reaches beyond the grid
    assert (centred[~valid] == OUTSIDE_HU).all()
    assert not valid.all()
    swapped, _ = crop(hu, inside, PROFILE, swapped=True)
    body = np.nonzero(swapped[0] > 0)
    assert len(body[0]) < 20 * 16
    row, column = (round(c) - PROFILE.side // 2 for c in (47.5, 17.5))
    padded = np.pad(hu, ((0, 0), (40, 40), (40, 40)), constant_values=OUTSIDE_HU)
    by_hand = padded[2:10, row + 40 : row + 72, column + 40 : column + 72]
    np.testing.assert_array_equal(swapped, by_hand)


def test_outside_the_scan_is_air(template: Template) -> None:
    """Acceptance 5: a scan moved by 30 mm has no voxel of exactly 0 HU outside its body; legacy fills with water."""
    scan = neck(7, noise_hu=0.0)
    affine = scan.affine.copy()
    affine[:3, 3] += (0, 0, 30)
    moved = Volume(scan.voxels, affine)
    # so few iterations that the frames stay apart along z: part of the template's grid is outside the scan
    short = Volume(moved.voxels[:12], moved.affine)
    still = replace(REGISTRATION, iterations=1)
    aligned = align(respaced(short, SPACING), template, still)
    assert 0 < (~aligned.inside).mean() < 1
    assert (aligned.hu[~aligned.inside] == OUTSIDE_HU).all()
    assert not (aligned.hu == 0).any()
    legacy = align(respaced(short, SPACING, legacy=True), template, still, legacy=True)
    assert (legacy.hu[~legacy.inside] == 0).all()


def test_resampling_is_linear_and_beyond_the_last_voxel_is_air() -> None:
    ramp = np.broadcast_to((np.arange(9) * 10.0)[:, None, None], (9, 4, 4))
    volume = Volume(np.ascontiguousarray(ramp).astype(np.int16), axial_affine((9, 4, 4), (2.0, 1.0, 1.0)))
    found = respaced(volume, (3.0, 1.0, 1.0))
    assert found.shape == (6, 4, 4)  # 9 · 2 / 3
    np.testing.assert_allclose(found.voxels[:, 1, 1], [0, 15, 30, 45, 60, 75], atol=1e-4)
    np.testing.assert_allclose(found.world([0, 0, 0]), volume.world([0, 0, 0]))
    np.testing.assert_allclose(found.spacing, (3.0, 1.0, 1.0))
    finer = respaced(volume, (0.9, 1.0, 1.0))  # 20 slices, the last at 17.1 mm: more than half a voxel beyond 16 mm
    assert finer.voxels[-1].tolist() == np.full((4, 4), OUTSIDE_HU).tolist()
    assert (respaced(volume, (0.9, 1.0, 1.0), legacy=True).voxels[-1] == 8).all()


def test_registration_is_repeatable_and_its_seed_is_its_own(template: Template) -> None:
    """Acceptance 6: the same scan and seed give bit-equal slices; another seed draws other samples."""
    scan = neck(3, shift_mm=(2.0, 6.0, -4.0))
    first, again = (prepare(scan, template, settings()) for _ in range(2))
    np.testing.assert_array_equal(first.slices, again.slices)
    assert first.facts == again.facts
    other = prepare(scan, template, replace(settings(), registration=replace(REGISTRATION, seed=2)))
    assert other.facts["similarity"] != first.facts["similarity"]
    assert np.abs(other.slices - first.slices).mean() < 0.05


def test_registration_finds_a_known_shift(template: Template) -> None:
    """Within half a pixel, also of a scan that is in place already, from which a larger step would lead away."""
    for back, left in ((12.0, -10.0), (0.0, 0.0)):
        moved = neck(99, shift_mm=(0.0, back, left))
        aligned = align(respaced(moved, SPACING), template, replace(REGISTRATION, iterations=100))
        centre = template.volume.world((np.asarray(SHAPE) - 1) / 2)
        found = aligned.to_scan[:3, :3] @ centre + aligned.to_scan[:3, 3] - centre
        np.testing.assert_allclose(found[:2], [-left, -back], atol=1.0)


def test_heights_are_in_the_scans_own_world(template: Template) -> None:
    scan = neck(99)
    affine = scan.affine.copy()
    affine[2, 3] += 500
    prepared = prepare(Volume(scan.voxels, affine), template, settings())
    expected = template.volume.world([[n, 19.5, 19.5] for n in slice_numbers(20, PROFILE)])[:, 2] + 500
    np.testing.assert_allclose(prepared.z_mm, expected, atol=1.5)


def coronal(seed: int) -> Volume:
    """Return a stack of coronal slices of 6 mm."""
    return neck(seed, shape=(20, 14, 40), spacing=(2.0, 6.0, 2.0))


def askew(seed: int) -> Volume:
    """Return a stack whose slices lie 30° off the axial plane."""
    scan = neck(seed)
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
    return Volume(scan.voxels, turn @ scan.affine)


@pytest.mark.parametrize(
    ("scan", "code"),
    [
        (chest(1), "wrong-body-part"),  # acceptance 14
        (neck(1, shape=(4, 40, 40)), "too-short"),  # shorter than the profile
        (neck(1, shape=(2, 40, 40)), "too-short"),
        (coronal(1), "non-axial"),
        (askew(1), "non-axial"),
        (Volume(np.full(SHAPE, 40, np.int16), axial_affine(SHAPE, SPACING)), "one-value"),
        (Volume(neck(1).voxels // 100 - 1000, axial_affine(SHAPE, SPACING)), "no-body"),
    ],
    ids=["chest", "4-slices", "2-slices", "coronal", "askew", "constant", "air"],
)
def test_what_cannot_be_read_right_has_a_code(scan: Volume, code: str, template: Template) -> None:
    """Acceptance 13 and 14: a defined status, never a silent probability; a constant volume divides by nothing."""
    with pytest.raises(Refusal) as refused:
        prepare(scan, template, settings())
    assert refused.value.code == code


def test_the_legacy_range_of_one_value_is_refused() -> None:
    """Acceptance 13: no division by zero."""
    with pytest.raises(Refusal, match="one-value"):
        windowed(np.full((2, 3, 3), 900.0), LegacySwitches(scan_range=True))


def test_a_scan_that_lacks_some_slices_says_which(template: Template) -> None:
    """A-D7: what the scan does not have is left out, not scored as padding."""
    scan = neck(99)
    cut = Volume(scan.voxels[:15], scan.affine)
    loose = replace(settings(), profile=replace(PROFILE, least_coverage=0.1))
    aligned = align(respaced(cut, SPACING), template, replace(REGISTRATION, iterations=1))
    aligned = replace(aligned, inside=np.arange(20)[:, None, None] * np.ones((1, 40, 40)) < 12)
    prepared = kept_slices(aligned, template, loose)
    np.testing.assert_array_equal(prepared.inside, slice_numbers(20, PROFILE) < 12)
    assert prepared.facts["slices_inside"] == 4
    with pytest.raises(Refusal, match="4 of the 8 slices"):
        kept_slices(aligned, template, settings())


def test_axial_scans_of_any_orientation_pass() -> None:
    check_axial(neck(1).oriented("RAI").oriented())
    check_axial(neck(1, spacing=(0.5, 2.0, 2.0)))


def test_a_template_is_a_hashed_file(tmp_path: Path, template: Template) -> None:
    """A-D6: named, hashed, and long enough for the profile."""
    path = save(neck(99), tmp_path / "neck.nii.gz")
    assert read_template(path, SPACING, sha256=template.sha256).content_hash == template.content_hash
    with pytest.raises(ConfigError, match="template_sha256 says"):
        read_template(path, SPACING, sha256="0" * 64)
    with pytest.raises(ConfigError, match="no such file"):
        read_template(tmp_path / "absent.nii.gz", SPACING)
    with pytest.raises(DataError, match="20 slices"):
        check_template(template, replace(PROFILE, slab=30))


def test_the_fingerprint_is_of_what_changes_values() -> None:
    plain = settings().fingerprint("a")
    assert plain == settings(input_scale=True, last_epoch=True).fingerprint("a")
    changed = {settings(**{name: True}).fingerprint("a") for name in ("water_outside", "swapped_crop", "scan_range")}
    assert len({plain, *changed, settings().fingerprint("b")}) == 5
    assert Preparation.from_dict(settings(scan_range=True).to_dict()) == settings(scan_range=True)


def test_a_profile_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="first ≤ last < slab"):
        BodyPartProfile("odd", slab=10, first=3, last=10)

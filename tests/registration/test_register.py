from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from fmct.errors import DataError
from fmct.registration.register import RegistrationConfig, read_field, register, suppress_contrast, write_field
from fmct.volume import Volume
from tests.phantoms.phantom_pairs import small_pair

QUICK = RegistrationConfig(working_mm=7.0, knots_mm=60.0, rigid_steps=40, bspline_steps=6, sampling=0.4)


def points_of(volume: Volume) -> np.ndarray:
    return volume.world(np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), -1))


def test_a_rigid_shift_and_turn_is_found_and_found_again() -> None:
    pair = small_pair(5, misregistration_mm=0.0)
    angle = np.radians(4.0)
    motion = np.eye(4)
    motion[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    motion[:3, 3] = [9.0, -6.0, 11.0]
    moved = Volume(pair.ctpa.voxels, motion @ pair.ctpa.affine)
    found = register(moved, pair.nct, method="rigid", config=QUICK)
    points = points_of(pair.nct)
    truth = points @ motion[:3, :3].T + motion[:3, 3] - points
    inside = pair.lungs.voxels > 0
    assert found.field_mm is not None
    error = np.linalg.norm(found.field_mm - truth, axis=-1)[inside]
    assert np.linalg.norm(truth, axis=-1)[inside].mean() > 14
    assert error.mean() < 1.0
    again = register(moved, pair.nct, method="rigid", config=QUICK)
    assert np.array_equal(again.field_mm, found.field_mm)


def test_splines_take_away_most_of_a_smooth_deformation() -> None:
    pair = small_pair(5, misregistration_mm=12.0)
    found = register(pair.ctpa, pair.nct, config=QUICK)
    inside = pair.lungs.voxels > 0
    assert found.field_mm is not None
    before = np.linalg.norm(pair.field_mm, axis=-1)[inside].mean()
    after = np.linalg.norm(found.field_mm - pair.field_mm, axis=-1)[inside].mean()
    assert before > 3.5
    assert after < 0.5 * before
    assert found.warped.shape == pair.nct.shape
    assert found.warped.voxels.dtype == np.int16


def test_contrast_agent_is_capped_before_scans_are_compared() -> None:
    pair = small_pair(5, misregistration_mm=0.0)
    assert suppress_contrast(pair.ctpa).voxels.max() == 100
    heart = pair.heart.voxels > 0
    capped = suppress_contrast(pair.ctpa, heart).voxels
    assert capped[heart].max() == 100
    assert np.array_equal(capped[~heart], pair.ctpa.voxels[~heart])


def test_identity_brings_another_grid_of_the_same_world_over_without_a_field() -> None:
    pair = small_pair(5, misregistration_mm=0.0, noise_hu=0.0)
    other = pair.ctpa.oriented("LAS")
    found = register(other, pair.nct, method="identity")
    assert found.field_mm is None
    assert found.valid.all()
    assert np.array_equal(found.warped.voxels, pair.ctpa.voxels)


def test_a_given_transform_file_is_read_as_itk_writes_it(tmp_path: Path) -> None:
    pair = small_pair(5, misregistration_mm=8.0)
    write_field(tmp_path / "field.nii.gz", pair.field_mm, pair.nct)
    assert np.allclose(read_field(tmp_path / "field.nii.gz", pair.nct), pair.field_mm, atol=1e-3)
    shift = sitk.TranslationTransform(3, (5.0, -2.0, 3.0))  # LPS
    sitk.WriteTransform(shift, str(tmp_path / "shift.tfm"))
    found = register(pair.ctpa, pair.nct, method="given", given=tmp_path / "shift.tfm")
    assert found.field_mm is not None
    assert np.allclose(found.field_mm, [-5.0, 2.0, 3.0])
    (tmp_path / "wrong.tfm").write_text("nothing")
    with pytest.raises(DataError, match=r"wrong\.tfm: not readable"):
        read_field(tmp_path / "wrong.tfm", pair.nct)


def test_impossible_registrations_are_explained() -> None:
    pair = small_pair(5)
    suv = Volume(pair.ctpa.voxels.astype(np.float32), pair.ctpa.affine, "PT", "SUV")
    with pytest.raises(DataError, match="needs two CT"):
        register(suv, pair.nct, method="rigid")
    with pytest.raises(DataError, match="needs transform"):
        register(pair.ctpa, pair.nct, method="given")
    with pytest.raises(DataError, match="takes no transform"):
        register(pair.ctpa, pair.nct, method="rigid", given=pair.field_mm)
    with pytest.raises(DataError, match="expected one of"):
        register(pair.ctpa, pair.nct, method="demons")

from pathlib import Path

import numpy as np
import pytest

from fmct.data.pair_preparation import PreparationConfig, main, prepare_pairs, write_volume
from fmct.data.pair_table import read_pair_table, write_pair_table
from fmct.io import read_volume
from fmct.io.masks import read_mask
from fmct.phantoms.body import axial_affine
from fmct.registration.register import write_field
from fmct.registration.warping import warp, warp_mask
from fmct.volume import Volume
from tests.phantoms.phantom_pairs import small_pair


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one person: the scan, an angiogram 12 mm off, a mask drawn on it, and what came of a PET/CT."""
    folder = tmp_path_factory.mktemp("source")
    pair = small_pair(5, misregistration_mm=12.0)
    write_volume(folder / "a/nct.nii.gz", pair.nct)
    write_volume(folder / "a/ctpa.nii.gz", pair.ctpa.oriented("LPS"))
    write_volume(folder / "a/clot.nii.gz", pair.mask)
    write_volume(folder / "a/heart.nii.gz", pair.heart)
    write_field(folder / "a/field.mha", pair.field_mm, pair.nct)
    uptake = Volume(
        np.linspace(0, 9, 16 * 18 * 18).reshape(16, 18, 18).astype(np.float32),
        axial_affine((16, 18, 18), (11.0,) * 3),
        "PT",
        "SUV",
    )
    write_volume(folder / "a/pet.nii.gz", uptake)
    return folder


def table(folder: Path, **row: object) -> Path:
    path = folder / "table.csv"
    write_pair_table(path, [{"patient": "Anna B", "nct": "a/nct.nii.gz", "label": 1, **row}])
    return path


def test_a_given_transform_carries_scan_and_mask_over_and_the_pair_is_measured(source: Path, tmp_path: Path) -> None:
    row = {"ctpa": "a/ctpa.nii.gz", "minutes": 20, "registration": "given", "transform": "a/field.mha"}
    row |= {"mask": "a/clot.nii.gz", "annotated": "ctpa", "heart": "a/heart.nii.gz"}
    (done,) = prepare_pairs(table(source, **row), tmp_path)
    assert (done["decision"], done["ctpa"], done["mask"]) == (
        "accept",
        "Anna_B/paired.nii.gz",
        "Anna_B/nct_mask.nii.gz",
    )
    pair = small_pair(5, misregistration_mm=12.0)
    expected = warp(pair.ctpa, pair.nct, pair.field_mm).volume.voxels
    found = read_volume(tmp_path / "scans/Anna_B/paired.nii.gz")
    assert np.abs(found.voxels - expected).mean() < 1.0
    assert np.array_equal(read_volume(tmp_path / "scans/Anna_B/nct.nii.gz").voxels, pair.nct.voxels)
    carried = read_mask(tmp_path / "masks/Anna_B/nct_mask.nii.gz").voxels
    assert np.array_equal(carried, warp_mask(pair.mask, pair.nct, pair.field_mm).voxels)
    (known,) = read_pair_table(tmp_path / "pairs.csv")
    assert (known.quality.vessel_dice or 0) > 0.6
    assert (known.quality.heart_hu or 0) > 120
    assert known.quality.minutes == 20
    assert (tmp_path / "patients.csv").read_text().count("Anna B") == 2


def test_g2_a_rejected_pair_takes_its_mask_along_and_leaves_scan_and_label(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"ctpa": "a/ctpa.nii.gz", "minutes": 20, "registration": "identity", "mask": "a/clot.nii.gz"}
    (done,) = prepare_pairs(table(source, **row, annotated="ctpa"), tmp_path / "dropped")
    assert (done["decision"], done["mask"], done["label"]) == ("drop", "", 1.0)
    assert "vessel Dice" in str(done["reasons"])
    assert caplog.text.count("patient Anna B: pair dropped, and with it the mask") == 1
    assert (tmp_path / "dropped/scans/Anna_B/nct.nii.gz").is_file()
    assert not (tmp_path / "dropped/masks").exists()
    (done,) = prepare_pairs(table(source, **row, annotated="nct"), tmp_path / "own")
    assert (done["decision"], done["mask"]) == ("drop", "Anna_B/nct_mask.nii.gz")


def test_pet_of_the_same_examination_comes_onto_the_ct_grid(source: Path, tmp_path: Path) -> None:
    row = {"ctpa": "a/pet.nii.gz", "registration": "identity"}
    (done,) = prepare_pairs(table(source, **row), tmp_path, PreparationConfig(paired_modality="PT"))
    assert (done["decision"], done["lung_dice"]) == ("accept", None)
    found = read_volume(tmp_path / "scans/Anna_B/paired.nii.gz", modality="PT")
    ct = small_pair(5, misregistration_mm=12.0).nct
    assert found.shape == ct.shape
    assert np.allclose(found.affine, ct.affine)
    pet = read_volume(source / "a/pet.nii.gz", modality="PT")
    for place in ((3, 5, 7), (20, 30, 12)):
        there = pet.index(ct.world(place))
        low = np.floor(there).astype(int)
        share = there - low
        expected = sum(
            float(pet.voxels[tuple(low + corner)]) * np.prod(np.where(corner, share, 1 - share))
            for corner in np.ndindex(2, 2, 2)
        )
        assert abs(found.voxels[place] - expected) < 1e-3


def test_a_second_run_prepares_only_what_changed(source: Path, tmp_path: Path) -> None:
    path = table(source, ctpa="a/pet.nii.gz", registration="identity")
    config = PreparationConfig(paired_modality="PT")
    first = prepare_pairs(path, tmp_path, config)
    (tmp_path / "scans/Anna_B/paired.nii.gz").unlink()
    assert prepare_pairs(path, tmp_path, config) == first
    assert not (tmp_path / "scans/Anna_B/paired.nii.gz").exists()
    prepare_pairs(table(source, ctpa="a/pet.nii.gz", registration="identity", minutes=5), tmp_path, config)
    assert (tmp_path / "scans/Anna_B/paired.nii.gz").exists()


def test_g8_one_file_twice_is_taken_for_what_it_is(source: Path, tmp_path: Path) -> None:
    (done,) = prepare_pairs(table(source, ctpa="a/nct.nii.gz", registration="identity"), tmp_path)
    assert (done["decision"], done["identical"]) == ("drop", True)


def test_faults_of_files_are_explained_and_a_failed_registration_is_recorded(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(table(source, ctpa="a/absent.nii.gz")), str(tmp_path)]) == 2
    assert "no file" in capsys.readouterr().err
    path = table(source, ctpa="a/pet.nii.gz", registration="rigid")
    assert main([str(path), str(tmp_path), "--paired-modality", "PT"]) == 0
    assert "drop: 1" in capsys.readouterr().out
    (known,) = read_pair_table(tmp_path / "pairs.csv")
    assert known.ctpa == ""
    assert "needs two CT" in known.quality.failure


def test_t3_a_paired_scan_of_zeros_is_no_scan_and_g6_a_bad_scan_stops_nobody_else(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zeros = Volume(np.zeros((16, 18, 18), np.float32), axial_affine((16, 18, 18), (11.0,) * 3), "PT", "SUV")
    write_volume(source / "a/zeros.nii.gz", zeros)
    (source / "a/broken.nii.gz").write_bytes(b"no scan")
    path = source / "both.csv"
    rows = [
        {"patient": "Anna", "nct": "a/nct.nii.gz", "ctpa": "a/zeros.nii.gz"},
        {"patient": "Ben", "nct": "a/broken.nii.gz"},
    ]
    write_pair_table(path, [{"registration": "identity", "ctpa": "", **row} for row in rows])
    (done,) = prepare_pairs(path, tmp_path, PreparationConfig(paired_modality="PT"))
    assert (done["decision"], done["ctpa"]) == ("drop", "")
    assert "every voxel" in str(done["failure"])
    assert "patient Anna: pair dropped" in caplog.text
    assert "patient Ben: not prepared" in caplog.text
    assert (tmp_path / "refused.csv").read_text().splitlines()[1].startswith("Ben,a/broken.nii.gz,")

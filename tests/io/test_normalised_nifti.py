from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmct.errors import ConfigError, DataError, Refusal
from fmct.io import ReadPolicy, read_volume
from fmct.io.normalised_nifti import write_normalised
from fmct.normalise import FACT, Normalisation, normalise_volume
from fmct.store import Store
from fmct.store.ingest import IngestConfig, ingest
from tests.lesions.brains import ball, volume

SHAPE = (12, 14, 16)


def scan(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.where(ball(SHAPE, (1.0,) * 3, 5.0), random.normal(100, 10, SHAPE), random.random(SHAPE)).astype(
        np.float32
    )


def test_a_file_says_how_it_was_normalised_and_a_store_keeps_it(tmp_path: Path) -> None:
    """B.13.27: the provenance survives the file and the store, so that a second pass is seen wherever it would be."""
    settings = Normalisation("max_invert")
    made = normalise_volume(volume(scan()), settings)
    write_normalised(tmp_path / "made.nii.gz", made)
    read = read_volume(tmp_path / "made.nii.gz", modality="MR")
    np.testing.assert_allclose(read.voxels, made.voxels, atol=1e-6)
    np.testing.assert_allclose(read.affine, made.affine, atol=1e-6)
    assert normalise_volume(read, settings) is read
    with pytest.raises(DataError, match="normalised already"):
        normalise_volume(read, Normalisation("percentile"))
    ingest([tmp_path / "made.nii.gz"], tmp_path / "store", config=IngestConfig(modality="MR", workers=1))
    with Store.open(tmp_path / "store") as store:
        assert normalise_volume(store.volume(store.entries[0]), settings).facts[FACT] == made.facts[FACT]
    write_normalised(tmp_path / "raw.nii", volume(scan()))
    assert FACT not in read_volume(tmp_path / "raw.nii", modality="MR").facts


def test_a_damaged_note_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(scan().T, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b'{"format": {"name": "fmct-normalised"'))
    image.to_filename(tmp_path / "a.nii")
    with pytest.raises(Refusal, match=r"unreadable: .*note on its normalisation is damaged"):
        read_volume(tmp_path / "a.nii", modality="MR")


def test_one_volume_of_a_4d_file_is_read_when_it_is_named(tmp_path: Path) -> None:
    """B.13.26: a 4D series is refused with what to do; frame chooses an echo."""
    echoes = np.stack([scan(seed).T for seed in range(3)], axis=-1)
    nib.Nifti1Image(echoes, np.eye(4)).to_filename(tmp_path / "echoes.nii.gz")
    with pytest.raises(Refusal, match=r"four-dimensional: .*3 volumes.*frame=0 … 2 chooses one"):
        read_volume(tmp_path / "echoes.nii.gz", modality="MR")
    for number in range(3):
        found = read_volume(tmp_path / "echoes.nii.gz", modality="MR", policy=ReadPolicy(frame=number))
        nib.Nifti1Image(echoes[..., number], np.eye(4)).to_filename(tmp_path / "one.nii")
        np.testing.assert_array_equal(found.voxels, read_volume(tmp_path / "one.nii", modality="MR").voxels)
        assert found.facts["frame"] == number
    with pytest.raises(Refusal, match="four-dimensional"):
        read_volume(tmp_path / "echoes.nii.gz", modality="MR", policy=ReadPolicy(frame=3))
    with pytest.raises(ConfigError, match="frame"):
        ReadPolicy(frame=-1)


def test_hu_are_not_read_as_mr(tmp_path: Path) -> None:
    """B.13.26: a CT given to an MR model, in a format that names no modality."""
    head = np.where(ball(SHAPE, (1.0,) * 3, 5.0), 40, -1000) + np.random.default_rng(0).integers(-20, 20, SHAPE)
    nib.Nifti1Image(head.astype(np.int16).T, np.eye(4)).to_filename(tmp_path / "head.nii")
    with pytest.raises(Refusal, match="wrong-modality: expected MR, and the values are HU of a CT"):
        read_volume(tmp_path / "head.nii", modality="MR")
    phase = np.random.default_rng(0).integers(-2048, 2048, SHAPE)
    nib.Nifti1Image(phase.astype(np.int16).T, np.eye(4)).to_filename(tmp_path / "phase.nii")
    assert read_volume(tmp_path / "phase.nii", modality="MR").modality == "MR"
    with pytest.raises(DataError, match="looks like a CT, a phase image"):
        normalise_volume(read_volume(tmp_path / "phase.nii", modality="MR"), Normalisation("zscore_mask"))


def test_thin_slabs_are_refused(tmp_path: Path) -> None:
    """B.13.26: fewer slices than the policy takes."""
    nib.Nifti1Image(scan()[:7].T, np.eye(4)).to_filename(tmp_path / "thin.nii")
    with pytest.raises(Refusal, match="too-few-slices"):
        read_volume(tmp_path / "thin.nii", modality="MR")

"""DICOM segmentations as written: read back by highdicom, aligned with their source slices by SOP instance UID."""

from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from fmct.errors import DataError
from fmct.io import read_volume
from fmct.io.dicom_seg import SegmentationModel, write_segmentation
from fmct.io.masks import read_mask
from tests.io.dicom_writer import AXIAL, CORONAL, SAGITTAL, stacked, write_enhanced, write_series

MODEL = SegmentationModel("fmct test", "1.0", "ab" * 32)
FRAME = "1.2.826.0.1.3680043.8.498.1"


def framed(dataset: Dataset, number: int) -> None:
    """Give a slice the frame of reference that every series of a scanner has."""
    del number
    dataset.FrameOfReferenceUID = FRAME


def series(folder: Path, orientation: tuple[float, ...], **options: object) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Write 18 slices of 24 × 20 pixels; return (files in slice order, HU, affine (slice, row, column) → RAS)."""
    values = np.random.default_rng(4).integers(-100, 200, (18, 24, 20)).astype(np.int16)
    values[:, :4] = -1000
    paths = write_series(
        folder,
        values,
        stacked((-30.0, 15.0, 40.0), orientation, 2.5 * np.arange(18)),
        orientation=orientation,
        spacing=(1.5, 0.75),
        **{"change": framed, **options},
    )
    volume = read_volume(folder)
    return [str(path) for path in paths], values, np.asarray(volume.facts["original_affine"])


def blobs() -> np.ndarray:
    masks = np.zeros((2, 18, 24, 20), dtype=bool)
    masks[0, 3:7, 8:14, 5:9] = True
    masks[1, 5:6, 2:20, 6:18] = True
    return masks


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL], ids=["axial", "coronal", "sagittal"])
def test_frames_refer_to_their_slices_by_sop_instance_uid(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    paths, _, affine = series(tmp_path / "ct", orientation)
    masks = blobs()
    write_segmentation(tmp_path / "mask.dcm", masks, affine, paths[::-1], labels=["embolus", "infarct"], model=MODEL)
    found = highdicom.seg.segread(tmp_path / "mask.dcm")
    sources = [dcmread(path, stop_before_pixels=True) for path in paths]
    first = [np.asarray(dataset.ImagePositionPatient, float) for dataset in sources]
    # The affine counts slices along the normal; the files were written in that order or its reverse.
    along = np.linalg.solve(affine[:3, :3], np.diag([-1, -1, 1]) @ (first[1] - first[0]))[0]
    ordered = masks if along > 0 else masks[:, ::-1]
    pixels = found.get_pixels_by_source_instance(
        source_sop_instance_uids=[dataset.SOPInstanceUID for dataset in sources], ignore_spatial_locations=True
    )
    assert np.array_equal(np.moveaxis(pixels, -1, 0) > 0, ordered)
    assert [found.get_segment_description(n).segment_label for n in (1, 2)] == ["embolus", "infarct"]
    assert (found.PatientID, found.StudyInstanceUID) == ("PATIENT-1", "1.2.3.4")
    assert found.FrameOfReferenceUID == FRAME
    assert "research use only" in found.SeriesDescription


def test_the_mask_lies_where_the_volume_says(tmp_path: Path) -> None:
    """Read back in world coordinates: every voxel of the segment is a voxel of the mask."""
    paths, _, affine = series(tmp_path / "ct", SAGITTAL)
    masks = blobs()[:1]
    write_segmentation(tmp_path / "mask.dcm", masks, affine, paths, labels=["embolus"], model=MODEL)
    back = read_mask(tmp_path / "mask.dcm")
    found = back.world(np.argwhere(back.voxels > 0))
    wanted = np.argwhere(masks[0]) @ affine[:3, :3].T + affine[:3, 3]
    assert len(found) == len(wanted)
    key = np.lexsort(np.round(found, 2).T), np.lexsort(np.round(wanted, 2).T)
    assert np.abs(found[key[0]] - wanted[key[1]]).max() < 0.01


def test_an_enhanced_multi_frame_series_takes_its_mask_frame_by_frame(tmp_path: Path) -> None:
    values = np.random.default_rng(4).integers(-100, 200, (18, 24, 20)).astype(np.int16)
    values[:, :4] = -1000
    path = write_enhanced(
        tmp_path / "ct" / "all.dcm", values, stacked((0, 0, 0), AXIAL, 2.0 * np.arange(18)), spacing=(1.5, 0.75)
    )
    dataset = dcmread(path)
    dataset.FrameOfReferenceUID = FRAME
    for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.DimensionIndexValues = [index + 1]
        group.FrameContentSequence = [content]
    dataset.save_as(path)
    affine = np.asarray(read_volume(path).facts["original_affine"])
    masks = blobs()[:1]
    write_segmentation(tmp_path / "mask.dcm", masks, affine, [str(path)], labels=["embolus"], model=MODEL)
    found = highdicom.seg.segread(tmp_path / "mask.dcm")
    pixels = found.get_pixels_by_source_frame(
        source_sop_instance_uid=dataset.SOPInstanceUID,
        source_frame_numbers=range(1, 19),
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    ordered = masks[0] if affine[2, 0] > 0 else masks[0, ::-1]
    assert np.array_equal(pixels[..., 0] > 0, ordered)


def test_the_same_mask_of_the_same_model_has_the_same_uids_and_another_has_not(tmp_path: Path) -> None:
    paths, _, affine = series(tmp_path / "ct", AXIAL)
    other = blobs()[:1].copy()
    other[0, 0, 0, 0] = True
    uids = []
    for name, masks in (("a", blobs()[:1]), ("b", blobs()[:1]), ("c", other)):
        write_segmentation(tmp_path / f"{name}.dcm", masks, affine, paths, labels=["embolus"], model=MODEL)
        uids.append(dcmread(tmp_path / f"{name}.dcm").SOPInstanceUID)
    assert uids[0] == uids[1] != uids[2]


def test_an_empty_mask_is_a_segmentation_too(tmp_path: Path) -> None:
    paths, _, affine = series(tmp_path / "ct", AXIAL)
    empty = np.zeros((1, 18, 24, 20), dtype=bool)
    write_segmentation(tmp_path / "mask.dcm", empty, affine, paths, labels=["embolus"], model=MODEL)
    assert not highdicom.seg.segread(tmp_path / "mask.dcm").pixel_array.any()


def test_a_source_that_a_segmentation_cannot_refer_to_is_explained(tmp_path: Path) -> None:
    paths, _, affine = series(tmp_path / "ct", AXIAL, change=None)
    with pytest.raises(DataError, match="the source has no FrameOfReferenceUID"):
        write_segmentation(tmp_path / "m.dcm", blobs()[:1], affine, paths, labels=["a"], model=MODEL)
    paths, _, affine = series(tmp_path / "framed", AXIAL)
    with pytest.raises(DataError, match="the 17 source slices are not the 18 of the mask"):
        write_segmentation(tmp_path / "m.dcm", blobs()[:1], affine, paths[1:], labels=["a"], model=MODEL)
    with pytest.raises(DataError, match="share an SOP instance UID"):
        write_segmentation(tmp_path / "m.dcm", blobs()[:1], affine, [*paths[:-1], paths[0]], labels=["a"], model=MODEL)
    (tmp_path / "junk.dcm").write_bytes(b"not dicom")
    with pytest.raises(DataError, match=r"no longer reads|the source has no"):
        write_segmentation(
            tmp_path / "m.dcm", blobs()[:1], affine, [str(tmp_path / "junk.dcm")], labels=["a"], model=MODEL
        )
    assert not (tmp_path / "m.dcm").exists()


def test_names_that_anonymised_files_lack_are_left_empty(tmp_path: Path) -> None:
    def stripped(dataset: Dataset, number: int) -> None:
        framed(dataset, number)
        del dataset.PatientID, dataset.PatientName, dataset.SOPClassUID

    paths, _, affine = series(tmp_path / "ct", AXIAL, change=stripped, series_uid=generate_uid())
    write_segmentation(tmp_path / "mask.dcm", blobs()[:1], affine, paths, labels=["embolus"], model=MODEL)
    assert str(dcmread(tmp_path / "mask.dcm").PatientName) == ""

"""Masks of three kinds of files come out as one thing: G5 (orientation), G6 (bad input)."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from fmct.errors import DataError
from fmct.io.masks import MaskGrid, read_mask
from tests.data.labelled_store import SHAPE, SPACING
from tests.io.dicom_writer import write_series

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def grid() -> MaskGrid:
    """A grid of axial slices with z up and, as a DICOM series has them, rows to the back and columns to the left."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, -SPACING[2]], [0, -SPACING[1], 0], [SPACING[0], 0, 0]])
    affine[:3, 3] = (40.0, 30.0, -20.0)
    return MaskGrid(SHAPE, affine)


def write_rtstruct(path: Path, regions: dict[str, list[np.ndarray]]) -> Path:
    """Write contours, each (P, 3) LPS mm, as an RTSTRUCT."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTSTRUCT, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTSTRUCT, meta.MediaStorageSOPInstanceUID
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=1):
        roi, region = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        region.ReferencedROINumber, region.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [float(v) for v in np.round(points, 4).ravel()]
            region.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(region)
    dataset.save_as(path, enforce_file_format=True)
    return path


def polygon(z: float, rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
    """Return a rectangle on slice z between voxel edges, (4, 3) LPS mm."""
    corners = [(z, rows[0], columns[0]), (z, rows[0], columns[1]), (z, rows[1], columns[1]), (z, rows[1], columns[0])]
    world = np.array(corners) @ grid().affine[:3, :3].T + grid().affine[:3, 3]
    return world * [-1, -1, 1]


def box() -> np.ndarray:
    inside = np.zeros(SHAPE, dtype=np.float32)
    inside[6:10, 8:15, 10:20] = 1
    return inside


def rectangles(planes: range) -> list[np.ndarray]:
    return [polygon(z, (7.5, 14.5), (9.5, 19.5)) for z in planes]


def test_contours_fill_the_voxels_whose_centres_they_hold(tmp_path: Path) -> None:
    path = write_rtstruct(tmp_path / "rt.dcm", {"PE": rectangles(range(6, 10))})
    mask = read_mask(path, "SPL", grid=grid())
    assert np.array_equal(mask.voxels, box())
    assert np.allclose(mask.affine, grid().affine)


def test_an_inner_contour_is_a_hole_and_regions_are_chosen_by_name(tmp_path: Path) -> None:
    ring = [*rectangles(range(6, 10)), *(polygon(z, (9.5, 11.5), (11.5, 13.5)) for z in range(6, 10))]
    path = write_rtstruct(tmp_path / "rt.dcm", {"Heart": rectangles(range(2, 3)), "pe ": ring})
    expected = box()
    expected[6:10, 10:12, 12:14] = 0
    assert np.array_equal(read_mask(path, grid=grid(), names=["PE"]).voxels, expected)
    both = read_mask(path, grid=grid()).voxels
    assert both.sum() == expected.sum() + 70
    with pytest.raises(DataError, match="vein"):
        read_mask(path, grid=grid(), names=["vein"])


def test_contours_on_every_second_slice_stand_for_the_slab_between(tmp_path: Path) -> None:
    path = write_rtstruct(tmp_path / "rt.dcm", {"PE": rectangles(range(6, 13, 2))})
    filled = np.flatnonzero(read_mask(path, grid=grid()).voxels.any(axis=(1, 2)))
    assert filled.tolist() == list(range(5, 14))


def test_a_triangle_against_a_slow_even_odd_count(tmp_path: Path) -> None:
    corners = np.array([(5.0, 3.3, 4.1), (5.0, 20.2, 9.7), (5.0, 9.4, 27.6)])
    world = corners @ grid().affine[:3, :3].T + grid().affine[:3, 3]
    path = write_rtstruct(tmp_path / "rt.dcm", {"PE": [world * [-1, -1, 1]]})
    expected = np.zeros(SHAPE, dtype=bool)
    for y in range(SHAPE[1]):
        for x in range(SHAPE[2]):
            sides = [
                np.sign((b[1] - a[1]) * (x - a[2]) - (b[2] - a[2]) * (y - a[1]))
                for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)
            ]
            expected[5, y, x] = abs(sum(sides)) == 3
    assert np.array_equal(read_mask(path, grid=grid()).voxels > 0, expected)


def test_contours_of_another_series_are_refused(tmp_path: Path) -> None:
    outside = write_rtstruct(tmp_path / "a.dcm", {"PE": [p + np.array([0, 0, 400]) for p in rectangles(range(6, 10))]})
    with pytest.raises(DataError, match="outside the series"):
        read_mask(outside, grid=grid())
    tilted = rectangles(range(6, 7))[0] + np.array([[0, 0, 0], [0, 0, 9], [0, 0, 12], [0, 0, 1]])
    twisted = tilted + np.array([[0, 0, 0], [0, 7, 0], [0, 0, 0], [5, 0, 0]])
    with pytest.raises(DataError, match="tilted"):
        read_mask(write_rtstruct(tmp_path / "b.dcm", {"PE": [twisted]}), grid=grid())
    with pytest.raises(DataError, match="no voxel grid"):
        read_mask(write_rtstruct(tmp_path / "c.dcm", {"PE": rectangles(range(6, 7))}))


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM segmentation with the segments PE and artery, of a series of 16 × 16 voxels, empty slices left out."""
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    root = tmp_path_factory.mktemp("seg")
    voxels = np.full((20, 24, 24), -1000, dtype=np.int16)
    voxels[2:18, 4:20, 4:20] = 40
    voxels[2:5, 4:8, 3:12] = 300
    files = write_series(root / "series", voxels, spacing=(1.5, 1.0))
    sources = [pydicom.dcmread(path) for path in files]
    frame = generate_uid()
    for source in sources:
        source.FrameOfReferenceUID, source.SliceThickness = frame, 2.0
        for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
            setattr(source, name, "")
        source.ReferringPhysicianName = ""
    pixels = np.zeros((*voxels.shape, 2), dtype=np.uint8)
    pixels[2:5, 4:8, 3:12, 0] = 1
    pixels[3:4, 10:12, 3:5, 1] = 1
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Embolus,
            algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in ((1, "PE"), (2, "artery"))
    ]
    made = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="fmct",
        manufacturer_model_name="tests",
        software_versions="1",
        device_serial_number="1",
    )
    made.save_as(root / "seg.dcm")
    return root


def test_dicom_segmentations_lie_where_their_series_lies(segmentation: Path) -> None:
    """G5: marker voxels of the segmentation and of the series have the same place in the world."""
    from fmct.io import read_volume

    volume = read_volume(segmentation / "series")
    mask = read_mask(segmentation / "seg.dcm", volume.orientation, names=["pe"])
    assert mask.voxels.sum() == 3 * 4 * 9
    index = volume.index(mask.world(np.argwhere(mask.voxels > 0).astype(float)))
    assert np.allclose(index, np.rint(index), atol=1e-3)
    z, y, x = np.rint(index).astype(int).T
    assert (volume.voxels[z, y, x] == 300).all()
    assert (volume.voxels == 300).sum() == mask.voxels.sum()
    both = read_mask(segmentation / "seg.dcm", volume.orientation)
    assert both.voxels.sum() == 3 * 4 * 9 + 4
    with pytest.raises(DataError, match="no segment called lung"):
        read_mask(segmentation / "seg.dcm", names=["lung"])


def test_files_that_are_no_masks_say_so(segmentation: Path, tmp_path: Path) -> None:
    """G6: empty, unreadable, 4-D and non-binary masks, and DICOM that is neither segmentation nor contours."""
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(DataError, match="empty"):
        read_mask(tmp_path / "empty.nii.gz")
    (tmp_path / "text.nii").write_text("no mask" * 100)
    with pytest.raises(DataError, match="not readable as a mask"):
        read_mask(tmp_path / "text.nii")
    with pytest.raises(DataError, match="not readable"):
        read_mask(tmp_path / "absent.nii")
    image = sorted((segmentation / "series").iterdir())[0]
    with pytest.raises(DataError, match="SOP class"):
        read_mask(image)
    for name, voxels in (("4d", np.zeros((4, 4, 4, 2), np.uint8)), ("share", np.full((4, 4, 4), 0.5, np.float32))):
        nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / f"{name}.nii.gz")
        with pytest.raises(DataError, match="expected a mask"):
            read_mask(tmp_path / f"{name}.nii.gz")


def test_labels_of_a_mask_are_one_unless_chosen(tmp_path: Path) -> None:
    voxels = np.zeros((4, 4, 4), np.uint8)
    voxels[0, 0, 0], voxels[1, 1, 1] = 2, 5
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "m.nii.gz")
    assert read_mask(tmp_path / "m.nii.gz").voxels.sum() == 2
    assert read_mask(tmp_path / "m.nii.gz", labels=[5]).voxels.sum() == 1
    with pytest.raises(DataError, match="labels 2, 5"):
        read_mask(tmp_path / "m.nii.gz", labels=[])

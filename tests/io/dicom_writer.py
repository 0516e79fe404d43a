"""Writes synthetic DICOM for tests: any orientation, positions, compression, faults."""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import config, dcmread, dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
NATIVE = {"explicit": ExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian, "big-endian": ExplicitVRBigEndian}
COMPRESSED = ("jpeg-2000", "jpeg-ls", "rle", "jpeg-lossless")
Change = Callable[[Dataset, int], None]


def normal(orientation: Sequence[float]) -> np.ndarray:
    """Return the unit normal (LPS) of an orientation (row direction, column direction)."""
    return np.cross(orientation[:3], orientation[3:])


def stacked(origin: Sequence[float], orientation: Sequence[float], heights: Sequence[float]) -> np.ndarray:
    """Return slice positions (K, 3) in LPS mm at the given heights along the normal."""
    return np.asarray(origin) + np.asarray(heights)[:, None] * normal(orientation)


def slice_points(shape: Sequence[int], position: np.ndarray, orientation: Sequence[float], spacing: Sequence[float]):
    """Return the LPS points (H, W, 3) of the pixels of one slice; spacing is DICOM's (between rows, columns)."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    across, down = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    return position + columns[..., None] * across * spacing[1] + rows[..., None] * down * spacing[0]


def slice_dataset(
    pixels: np.ndarray,
    position: Sequence[float],
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (1.0, 1.0),
    series_uid: str,
    number: int = 0,
    kernel: str = "STANDARD",
    modality: str = "CT",
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
    bits: int = 16,
) -> Dataset:
    """Return one slice whose rescaled values are `pixels` (H, W)."""
    dataset = Dataset()
    dataset.SOPClassUID = CT_IMAGE
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = series_uid
    dataset.StudyInstanceUID = "1.2.3.4"
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientID = "PATIENT-1"
    dataset.PatientName = "Phantom^Test"
    dataset.KVP = 120
    dataset.Manufacturer = "fmct"
    dataset.ConvolutionKernel = kernel
    dataset.InstanceNumber = number + 1
    dataset.ImagePositionPatient = [f"{v:.8g}" for v in position]
    dataset.ImageOrientationPatient = [f"{v:.9f}" for v in orientation]
    dataset.PixelSpacing = [f"{v:.8g}" for v in spacing]
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.8g}", f"{intercept:.8g}"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    stored = np.rint((pixels - intercept) / slope).astype(np.int16 if signed else np.uint16)
    dataset.PixelData = stored.tobytes()
    return dataset


def save(dataset: Dataset, path: Path, syntax: str = "explicit") -> Path:
    """Write a data set under a transfer syntax: a name of NATIVE or COMPRESSED."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(str(dataset.get("SOPClassUID", CT_IMAGE)))
    meta.MediaStorageSOPInstanceUID = UID(str(dataset.SOPInstanceUID))
    meta.TransferSyntaxUID = NATIVE.get(syntax, ExplicitVRLittleEndian)
    file = FileDataset(str(path), dataset, file_meta=meta, preamble=b"\0" * 128)
    if "PixelData" in file:
        file["PixelData"].VR = "OW"
    if syntax == "big-endian":
        file.PixelData = np.frombuffer(file.PixelData, dtype="<u2").astype(">u2").tobytes()
    elif syntax == "jpeg-ls":
        file.compress(JPEGLSLossless, generate_instance_uid=False)
    elif syntax == "rle":
        file.compress(RLELossless, generate_instance_uid=False)
    elif syntax in COMPRESSED:
        _compress_by_gdcm(file, {"jpeg-2000": "JPEG2000", "jpeg-lossless": "JPEG"}[syntax])
    path.parent.mkdir(parents=True, exist_ok=True)
    with faults_allowed():
        if syntax == "big-endian":
            dcmwrite(path, file, implicit_vr=False, little_endian=False, force_encoding=True)
        else:
            file.save_as(path, enforce_file_format=True)
    return path


@contextmanager
def faults_allowed() -> Iterator[None]:
    """Let pydicom hold and write values that the standard forbids."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(config.settings, "reading_validation_mode", config.IGNORE)
        patch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
        yield


def write_series(
    folder: Path,
    volume: np.ndarray,
    positions: np.ndarray | None = None,
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (1.0, 1.0),
    step_mm: float = 2.0,
    syntax: str = "explicit",
    series_uid: str | None = None,
    name: str = "IM{:04d}",
    change: Change | None = None,
    **options: object,
) -> list[Path]:
    """Write the slices (K, H, W) of a series, in a shuffled file order, and return their paths in slice order.

    positions (K, 3) are LPS mm; without them the slices lie `step_mm` apart. `change(dataset, number)` edits a slice
    before it is written; `options` go to slice_dataset.
    """
    uid = series_uid or generate_uid()
    if positions is None:
        positions = stacked((0.0, 0.0, 0.0), orientation, step_mm * np.arange(len(volume)))
    labels = np.random.default_rng(len(volume)).permutation(len(volume))
    paths = []
    for number, (pixels, position) in enumerate(zip(volume, positions, strict=True)):
        dataset = slice_dataset(
            pixels, position, orientation=orientation, spacing=spacing, series_uid=uid, number=number, **options
        )
        if change is not None:
            change(dataset, number)
        paths.append(save(dataset, folder / name.format(labels[number]), syntax))
    return paths


def write_enhanced(
    path: Path,
    volume: np.ndarray,
    positions: np.ndarray,
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (1.0, 1.0),
    syntax: str = "explicit",
) -> Path:
    """Write an enhanced multi-frame CT (K, H, W), positions in per-frame functional groups."""
    dataset = slice_dataset(volume[0], positions[0], series_uid=generate_uid())
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        del dataset[keyword]
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.NumberOfFrames = len(volume)
    dataset.PixelData = np.stack([pixels + 1024 for pixels in volume]).astype(np.uint16).tobytes()
    shared, measures, plane, transformation = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [f"{v:.8g}" for v in spacing]
    plane.ImageOrientationPatient = [f"{v:.9f}" for v in orientation]
    transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = "1", "-1024", "HU"
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.PlaneOrientationSequence = DicomSequence([plane])
    shared.PixelValueTransformationSequence = DicomSequence([transformation])
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    groups = []
    for position in positions:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = [f"{v:.8g}" for v in position]
        group.PlanePositionSequence = DicomSequence([place])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
    return save(dataset, path, syntax)


def _compress_by_gdcm(file: FileDataset, compressor: str) -> None:
    """Replace the pixel data by that of a file which GDCM, through SimpleITK, wrote with a compressor."""
    kind = np.int16 if file.PixelRepresentation else np.uint16
    pixels = np.frombuffer(file.PixelData, dtype=kind).reshape(1, file.Rows, file.Columns)
    with tempfile.NamedTemporaryFile(suffix=".dcm") as temporary:
        writer = sitk.ImageFileWriter()
        writer.SetFileName(temporary.name)
        writer.SetCompressor(compressor)
        writer.UseCompressionOn()
        writer.Execute(sitk.GetImageFromArray(pixels))
        written = dcmread(temporary.name)
    file.PixelData = written.PixelData
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    file.file_meta.TransferSyntaxUID = written.file_meta.TransferSyntaxUID

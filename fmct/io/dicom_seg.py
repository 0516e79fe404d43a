"""Writing a predicted mask as DICOM segmentation that refers to the series it was made from, through highdicom."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from fmct.artefacts import write_bytes
from fmct.errors import DataError
from fmct.io.dicom_header import quiet

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
# Elements that every image has, if only empty; anonymised files lack some of them.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
_STORAGE = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}  # the SOP class of single-frame images, which some exports leave out
_SERIES_NUMBER = 9000  # behind those of a scanner
_NEAR_SLICE = 0.1  # of a slice distance


@dataclass(frozen=True)
class SegmentationModel:
    """What made the mask: name and version for the segments' algorithm, fingerprint for reproducible UIDs."""

    name: str
    version: str
    fingerprint: str


def write_segmentation(
    path: Path,
    masks: np.ndarray,
    affine: np.ndarray,
    sources: Sequence[str],
    *,
    labels: Sequence[str],
    model: SegmentationModel,
) -> None:
    """Write one segment per label, binary, each frame referring to its source slice by SOP instance UID.

    masks: (T, K, H, W) bool, slices, rows and columns as on `affine` (4, 4), (slice, row, column) → RAS mm. sources:
    the files of the series, single-frame, or one multi-frame file. The same mask, model and series give the same UIDs.
    Raises DataError when the series lacks what a segmentation has to refer to, or its slices are not those of `masks`.
    """
    with quiet():
        try:
            datasets = [pydicom.dcmread(source, stop_before_pixels=True, force=True) for source in sources]
        except Exception as error:  # pydicom raises whatever a damaged file leads it to
            raise DataError(f"no DICOM segmentation: a source file no longer reads ({type(error).__name__}).") from None
        step_mm = float(np.linalg.norm(affine[:3, 0]))
        datasets = [_completed(dataset, step_mm=step_mm) for dataset in datasets]
        if len({dataset.SOPInstanceUID for dataset in datasets}) < len(datasets):
            raise DataError(
                "no DICOM segmentation: slices of the source share an SOP instance UID, so its frames could not say "
                "which slice they are of. The NIfTI mask holds the same voxels."
            )
        places = _places(datasets, affine, masks.shape[1])
        if len(datasets) > 1:
            order = np.argsort(places)
            datasets, places = [datasets[i] for i in order], places[order]
        frames = np.ascontiguousarray(np.moveaxis(masks[:, places], 0, -1)).astype(np.uint8)
        try:
            segmentation = _segmentation(datasets, frames, labels, model)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"no DICOM segmentation: the source series does not allow one ({error}).") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        segmentation.save_as(buffer, enforce_file_format=True)
        write_bytes(path, buffer.getvalue())


def _completed(dataset: Dataset, *, step_mm: float) -> Dataset:
    """Return the data set with what may be empty, an SOP class, and a slice thickness (the step where none is stated).

    Raises DataError where something may not be empty.
    """
    missing = [name for name in _NEEDED if not dataset.get(name)]
    if missing:
        raise DataError(
            f"no DICOM segmentation: the source has no {', '.join(missing)}, which a segmentation refers to. The NIfTI "
            "mask holds the same voxels."
        )
    for name in _MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")
    if not dataset.get("SOPClassUID"):
        dataset.SOPClassUID = _STORAGE.get(str(dataset.get("Modality", "CT")), _STORAGE["CT"])
    for measures in _measures(dataset):
        if not measures.get("SliceThickness"):
            measures.SliceThickness = f"{step_mm:.6g}"
    return dataset


def _measures(dataset: Dataset) -> list[Dataset]:
    """Return what holds the slice thickness: the data set itself, or its frames' pixel measures."""
    if "SharedFunctionalGroupsSequence" not in dataset:
        return [dataset]
    groups = [*dataset.SharedFunctionalGroupsSequence, *dataset.get("PerFrameFunctionalGroupsSequence", [])]
    return [measures for group in groups for measures in group.get("PixelMeasuresSequence", [])]


def _places(datasets: Sequence[Dataset], affine: np.ndarray, slices: int) -> np.ndarray:
    """Return the slice number on `affine` of each source slice, in the sources' order; each once, none left out."""
    positions = np.array([position for dataset in datasets for position in _positions(dataset)]) * _LPS_TO_RAS
    index = np.linalg.solve(affine[:3, :3], (positions - affine[:3, 3]).T).T
    places = np.rint(index[:, 0]).astype(np.int64)
    off = np.abs(index - np.stack([places, np.zeros_like(places), np.zeros_like(places)], axis=1))
    if sorted(places.tolist()) != list(range(slices)) or off[:, 0].max() > _NEAR_SLICE or off[:, 1:].max() > 0.5:
        raise DataError(
            f"no DICOM segmentation: the {len(places)} source slices are not the {slices} of the mask, one for one."
        )
    return places


def _positions(dataset: Dataset) -> list[list[float]]:
    """Return ImagePositionPatient (LPS mm) of a data set, or of each of its frames."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return [[float(value) for value in dataset.ImagePositionPatient]]
    return [
        [float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient]
        for group in dataset.PerFrameFunctionalGroupsSequence
    ]


def _segmentation(datasets: list[Dataset], frames: np.ndarray, labels: Sequence[str], model: SegmentationModel) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model.name[:64], version=model.version[:64], family=codes.DCM.ArtificialIntelligence
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label[:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(labels, start=1)
    ]
    content = [str(datasets[0].SeriesInstanceUID), model.fingerprint, hashlib.sha256(frames.tobytes()).hexdigest()]
    return highdicom.seg.Segmentation(
        source_images=datasets,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(entropy_srcs=[*content, "series"]),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=generate_uid(entropy_srcs=[*content, "instance"]),
        instance_number=1,
        manufacturer="fmct",
        manufacturer_model_name=model.name[:64],
        software_versions=model.version[:64],
        device_serial_number=model.fingerprint[:16],
        content_label="FMCT",
        content_description="predicted, research use only",
        series_description="fmct prediction, research use only",
        omit_empty_frames=True,
    )

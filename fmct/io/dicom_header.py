"""The header of a DICOM file, as one record a slice. Files are untrusted: nothing here trusts a value or a length."""

import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pydicom
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset

from fmct.errors import Refusal
from fmct.io.refusals import refusal

_KIND = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "PatientID",
    "BurnedInAnnotation",
]
_GRID = ["Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient"]
_SCALE = ["PixelSpacing", "ConvolutionKernel", "RescaleSlope", "RescaleIntercept", "RescaleType"]
_STORED = ["PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation", "BitsStored", "BitsAllocated"]
_GROUPS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
_TAGS = [*_KIND, *_GRID, *_SCALE, *_STORED, *_GROUPS]
_UNSAFE = re.compile(r"[^A-Za-z0-9 +./\\_-]")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_SOP_MODALITY = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.130": "PT",
    "1.2.840.10008.5.1.4.1.1.128.1": "PT",
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """What one slice (a file, or a frame of one) says about itself. Vectors are DICOM's (LPS mm); None: not stated."""

    frame: int
    series_uid: str
    instance_uid: str
    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    patient: str | None
    rows: int
    columns: int
    samples: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    kernel: str
    burned_in: bool
    slope: float | None
    intercept: float | None
    rescale_type: str
    padding: tuple[float, float] | None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom: its warnings and log records quote header values, which may name a patient."""
    settings = pydicom_config.settings
    before, was_disabled = settings.reading_validation_mode, pydicom_config.logger.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings.reading_validation_mode = pydicom_config.IGNORE
        pydicom_config.logger.disabled = True
        try:
            yield
        finally:
            settings.reading_validation_mode = before
            pydicom_config.logger.disabled = was_disabled


def read_dataset(path: str, tags: Sequence[str], *, pixels: bool = False) -> Dataset:
    """Return the named top-level elements of a DICOM file. Raises Refusal, never anything else."""
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
            if _DEFLATED in head:
                raise refusal("unsupported-compression", "deflated DICOM is not read: its inflated size is unbounded")
            file.seek(0)
            wanted = [*tags, "PixelData"] if pixels else list(tags)
            return pydicom.dcmread(file, force=True, stop_before_pixels=not pixels, specific_tags=wanted)
    except Refusal:
        raise
    except Exception as error:  # also RecursionError of nested sequences; the text of the error may quote a value
        raise refusal("unreadable", f"not readable as DICOM ({type(error).__name__})") from None


def read_headers(path: str) -> list[SliceHeader]:
    """Return one record for each slice of a DICOM file. Raises Refusal when it holds no placeable image."""
    with quiet():
        dataset = read_dataset(path, _TAGS)
        try:
            return _records(dataset)
        except Refusal:
            raise
        except Exception as error:  # a crafted element fails when it is first looked at
            raise refusal("unreadable", f"a header element is damaged ({type(error).__name__})") from None


def file_size(path: str) -> int:
    """Return the bytes of a file, 0 when it has vanished."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _records(dataset: Dataset) -> list[SliceHeader]:
    """Return the records of a parsed file."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise refusal(
            "not-an-image",
            f"a DICOM object without pixels (modality {plain_word(text(dataset, 'Modality')) or 'none'})",
        )
    if groups:
        shared = dataset.get("SharedFunctionalGroupsSequence")
        base = shared[0] if shared else Dataset()
        if len(groups) != frames:
            raise refusal("unreadable", f"{frames} frames but {len(groups)} functional groups", frames=frames)
        return [_record(dataset, number, [group, base]) for number, group in enumerate(groups)]
    if frames > 1:
        if text(dataset, "SOPClassUID").startswith(SECONDARY_CAPTURE):
            raise refusal("derived-image", "a multi-frame secondary capture")
        raise refusal("multi-frame", f"{frames} frames without functional groups", frames=frames)
    return [_record(dataset, 0, [])]


def _record(dataset: Dataset, frame: int, groups: Sequence[Dataset]) -> SliceHeader:
    """Return the record of one frame; `groups` are its functional groups, the frame's own first."""

    transformation = _functional(dataset, groups, "PixelValueTransformationSequence")
    frame_type = strings(_functional(dataset, groups, "CTImageFrameTypeSequence"), "FrameType") if groups else ()
    sop_class = text(dataset, "SOPClassUID")
    return SliceHeader(
        frame=frame,
        series_uid=text(dataset, "SeriesInstanceUID"),
        instance_uid=text(dataset, "SOPInstanceUID"),
        sop_class=sop_class,
        modality=plain_word(text(dataset, "Modality")).upper() or _SOP_MODALITY.get(sop_class, ""),
        image_type=tuple(v.upper() for v in (frame_type or strings(dataset, "ImageType"))),
        patient=text(dataset, "PatientID") or None,
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        position=numbers(_functional(dataset, groups, "PlanePositionSequence"), "ImagePositionPatient"),
        orientation=numbers(_functional(dataset, groups, "PlaneOrientationSequence"), "ImageOrientationPatient"),
        spacing=numbers(_functional(dataset, groups, "PixelMeasuresSequence"), "PixelSpacing"),
        kernel=plain_word(
            "\\".join(strings(_functional(dataset, groups, "CTReconstructionSequence"), "ConvolutionKernel"))
        ),
        burned_in=text(dataset, "BurnedInAnnotation").upper() == "YES",
        slope=number(transformation, "RescaleSlope"),
        intercept=number(transformation, "RescaleIntercept"),
        rescale_type=text(transformation, "RescaleType").upper(),
        padding=_padding(dataset),
    )


def _functional(dataset: Dataset, groups: Sequence[Dataset], sequence: str) -> Dataset:
    """Return the item of a functional group, or the data set itself where there are no groups (classic files)."""
    for group in groups:
        items = group.get(sequence)
        if items:
            return items[0]
    return Dataset() if groups else dataset


def _padding(dataset: Dataset) -> tuple[float, float] | None:
    """Return the (lowest, highest) stored padding value, None when the header names none."""
    first = number(dataset, "PixelPaddingValue")
    limit = number(dataset, "PixelPaddingRangeLimit")
    if first is None or not math.isfinite(first):
        return None
    bits = int(dataset.get("BitsStored") or 16)
    ends = [_signed(v, bits, dataset) for v in (first, first if limit is None or math.isnan(limit) else limit)]
    return (min(ends), max(ends))


def _signed(value: float, bits: int, dataset: Dataset) -> float:
    """Return a stored value under the pixels' sign: some writers state −2000 as the unsigned 63536, or the reverse."""
    allocated = int(dataset.get("BitsAllocated") or 16)
    if int(dataset.get("PixelRepresentation") or 0) == 1:
        return value - 2.0**allocated if value >= 2.0 ** (allocated - 1) else value
    return value + 2.0**allocated if value < 0 else value


def plain_word(value: str) -> str:
    """Return a technical word without characters that such words do not have, at most 48."""
    return _UNSAFE.sub("", value)[:48].strip()


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element as stripped text, the first of several values; empty when absent."""
    values = strings(dataset, keyword)
    return values[0] if values else ""


def strings(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the values of an element as stripped texts."""
    value = dataset.get(keyword)
    if value is None:
        return ()
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return tuple(str(item).strip(" \0") for item in value) if several else (str(value).strip(" \0"),)


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Return the values of an element as floats, NaN where one is no number; None when absent or empty."""
    try:
        values = strings(dataset, keyword)
    except (ValueError, TypeError, OverflowError):
        return (math.nan,)
    if not values or values == ("",):
        return None
    return tuple(_float(value) for value in values)


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return the first value of an element as a float, NaN when it is no number; None when absent."""
    values = numbers(dataset, keyword)
    return values[0] if values else None


def _float(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan

"""Stored pixel values of DICOM files, native or compressed.

Native pixels are viewed in place. JPEG 2000 and 8-bit JPEG go through Pillow, JPEG-LS through pyjpegls, RLE through
pydicom; JPEG lossless and 12-bit JPEG through GDCM, which SimpleITK carries and which reads files only: the frame is
wrapped in a temporary one that holds nothing of the patient.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from fmct.errors import Refusal
from fmct.io.codestream import codestream_size
from fmct.io.dicom_header import quiet, read_dataset
from fmct.io.refusals import refusal

_LAYOUT = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]
_PIXEL_TAGS = [*_LAYOUT, "NumberOfFrames", "PhotometricInterpretation"]
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_BY_PYDICOM = {
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG baseline, 8 bit",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
_BY_GDCM = {
    "1.2.840.10008.1.2.4.51": "JPEG extended, 12 bit",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first-order prediction",
}
LOSSY = {
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
}


class PixelFile:
    """The pixels of one open DICOM file. Every method raises Refusal and nothing else."""

    def __init__(self, path: str) -> None:
        with _guarded():
            self._dataset = read_dataset(path, _PIXEL_TAGS, pixels=True)
            self.syntax = transfer_syntax(self._dataset)
            self._native = _native(self._dataset, self.syntax) if self.syntax in _NATIVE else None
            self._encoded = [] if self._native is not None else _encoded(self._dataset)

    @property
    def lossy(self) -> bool:
        """Whether the transfer syntax may have changed values."""
        return str(self.syntax) in LOSSY

    def frame(self, number: int) -> np.ndarray:
        """Return the stored values (H, W) of one frame, integers in the machine's byte order."""
        with _guarded():
            if self._native is not None:
                return _used_bits(self._native[number], self._dataset)
            return _used_bits(_decoded(self._dataset, self.syntax, self._encoded, number), self._dataset)


@contextmanager
def _guarded() -> Iterator[None]:
    """Turn whatever a parser or decoder raises on damaged data into a Refusal that quotes nothing."""
    with quiet():
        try:
            yield
        except Refusal:
            raise
        except Exception as error:
            raise refusal("unreadable", f"the pixel data cannot be decoded ({type(error).__name__})") from None


def transfer_syntax(dataset: Dataset) -> UID:
    """Return the transfer syntax; a file without one is read as implicit little endian, DICOM's default."""
    meta = getattr(dataset, "file_meta", None)
    return UID(str(meta.get("TransferSyntaxUID", "") or ImplicitVRLittleEndian) if meta else ImplicitVRLittleEndian)


def _native(dataset: Dataset, syntax: UID) -> np.ndarray:
    """Return the uncompressed frames (N, H, W) as a view of the file's bytes."""
    frames, rows, columns = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    allocated = int(dataset.get("BitsAllocated") or 16)
    if allocated not in (8, 16, 32):
        raise refusal("unreadable", f"{allocated} bits a pixel; expected 8, 16 or 32", bits_allocated=allocated)
    content = dataset.get("PixelData") or b""
    promised = frames * rows * columns * allocated // 8
    if len(content) < promised:
        reason = f"{len(content)} bytes of pixels; the header promises {promised}"
        raise refusal("truncated-pixel-data", reason, promised_bytes=promised, found_bytes=len(content))
    kind = "i" if int(dataset.get("PixelRepresentation") or 0) == 1 else "u"
    # Big-endian words are swapped only in their own file; 8-bit pixels have no order.
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dtype = np.dtype(f"{order}{kind}{allocated // 8}")
    return np.frombuffer(content, dtype=dtype, count=frames * rows * columns).reshape(frames, rows, columns)


def _encoded(dataset: Dataset) -> list[bytes]:
    """Return the compressed bytes of every frame."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    content = dataset.get("PixelData") or b""
    if not content:
        raise refusal("truncated-pixel-data", "the file holds no pixel data")
    return list(generate_frames(content, number_of_frames=frames))


def _decoded(dataset: Dataset, syntax: UID, encoded: list[bytes], frame: int) -> np.ndarray:
    """Return one compressed frame decoded; its own size must be the header's, so that it cannot grow without bound."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if frame >= len(encoded):
        reason = f"{len(encoded)} frames of pixels, the header promises more"
        raise refusal("truncated-pixel-data", reason, found_frames=len(encoded))
    size = codestream_size(encoded[frame])
    if size is not None and size != (rows, columns):
        reason = f"the compressed image is {size[0]} × {size[1]}, the header says {rows} × {columns}"
        raise refusal("unreadable", reason, compressed_size=size, header_size=(rows, columns))
    single = _single_frame(dataset, syntax, encoded[frame])
    if str(syntax) in _BY_GDCM:
        return _decoded_by_gdcm(single)
    if str(syntax) not in _BY_PYDICOM or not get_decoder(syntax).is_available:
        raise refusal("unsupported-compression", f"no decoder for {syntax.name}", transfer_syntax=str(syntax))
    return pixel_array(single, raw=True)


def _single_frame(dataset: Dataset, syntax: UID, content: bytes) -> Dataset:
    """Return a data set with one compressed frame and nothing but the elements that decoding needs."""
    single = Dataset()
    for keyword in _LAYOUT:
        if keyword in dataset:
            setattr(single, keyword, dataset.get(keyword))
    single.PhotometricInterpretation = "MONOCHROME2"
    single.PixelData = encapsulate([content])
    single["PixelData"].VR = "OB"
    single["PixelData"].is_undefined_length = True
    single.file_meta = FileMetaDataset()
    single.file_meta.TransferSyntaxUID = syntax
    return single


def _decoded_by_gdcm(single: Dataset) -> np.ndarray:
    """Return the frame (H, W) decoded by the GDCM within SimpleITK."""
    single.SOPClassUID = single.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    single.SOPInstanceUID = single.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    sitk.ProcessObject.GlobalWarningDisplayOff()
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        single.save_as(file.name, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(file.name)
        values = sitk.GetArrayFromImage(reader.Execute())
    return values.reshape(int(single.Rows), int(single.Columns))


def _used_bits(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return stored values without what lies beyond BitsStored (old overlays), sign-extended."""
    allocated, signed = values.dtype.itemsize * 8, int(dataset.get("PixelRepresentation") or 0) == 1
    stored = int(dataset.get("BitsStored") or allocated)
    high = int(dataset.get("HighBit") or stored - 1)
    if not 1 <= stored <= 32 or not stored - 1 <= high < 32:
        raise refusal("unreadable", f"{stored} bits stored up to bit {high}", bits_stored=stored, high_bit=high)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if stored >= allocated:
        return values
    left = allocated - 1 - high if high < allocated else 0
    as_signed = values.view(f"i{allocated // 8}") if signed else values.view(f"u{allocated // 8}")
    return (as_signed << left) >> (allocated - stored)

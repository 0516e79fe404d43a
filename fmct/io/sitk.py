"""NRRD, MHA and MHD files, through SimpleITK. The text header is checked before a voxel is allocated."""

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fmct.io.affine import check_affine, slices_first
from fmct.io.assemble import ScaledVoxels, check_size, checked_stack, decide_modality, place, units_of
from fmct.io.candidate import Candidate
from fmct.io.nifti import GZIP_MAX_RATIO
from fmct.io.policy import ReadPolicy
from fmct.io.refusals import refusal
from fmct.volume import Volume

HEADER_LIMIT = 1 << 20
_IMAGE_IO = {"nrrd": "NrrdImageIO", "mha": "MetaImageIO"}
_SINGLE_FILE = {".nrrd", ".mha"}


def read_sitk(candidate: Candidate, policy: ReadPolicy, named: str | None) -> Volume:
    """Return the canonical Volume of an NRRD, MHA or MHD file. Raises Refusal."""
    path = candidate.paths[0]
    fields = header_fields(path, candidate.format)
    data_file = _data_file(path, fields)
    _check_geometry_is_stated(candidate.format, fields)
    sitk.ProcessObject.GlobalWarningDisplayOff()  # ITK prints file names, and they may name a patient
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IMAGE_IO[candidate.format])
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise refusal("unreadable", f"the {candidate.format.upper()} header is damaged") from None
    shape = _shape(reader)
    check_size(shape, policy)
    _check_length(data_file, fields, reader, shape)
    affine = _affine(reader)
    check_affine(affine, shape)
    order, stack = slices_first(affine, shape)
    mend = checked_stack(stack, policy)
    try:
        image = reader.Execute()
    except RuntimeError:
        raise refusal("truncated-pixel-data", "the voxels cannot be read whole") from None
    stored = sitk.GetArrayViewFromImage(image).reshape(shape).transpose(order)
    modality, voxels, facts = decide_modality(ScaledVoxels(stored), named, policy)
    return place(voxels, stack, mend, modality=modality, units=units_of(modality, policy), facts=facts)


def header_fields(path: str, kind: str) -> dict[str, str]:
    """Return the text header's {field in lower case: value} of an NRRD or MetaImage file. Raises Refusal."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        head = file.read(HEADER_LIMIT)
    separator = ":" if kind == "nrrd" else "="
    for raw in head.split(b"\n"):
        line = raw.decode("latin-1").strip()
        if not line and kind == "nrrd":
            return fields
        name, found, value = line.partition(separator)
        if found:
            fields[name.strip().lower()] = value.lstrip("=").strip()
        if kind == "mha" and name.strip() == "ElementDataFile":
            return fields
    if kind == "nrrd" and ("data file" in fields or "datafile" in fields):
        return fields
    raise refusal("unreadable", f"the {kind.upper()} header has no end")


def _data_file(path: str, fields: dict[str, str]) -> str:
    """Return the file that holds the voxels. Raises Refusal when it is not the file itself or beside it."""
    name = fields.get("elementdatafile", fields.get("data file", fields.get("datafile", "LOCAL")))
    if name.upper() == "LOCAL":
        return path
    target = Path(path).parent / name
    if "%" in name or name.upper().startswith("LIST"):
        raise refusal("unsafe-path", "the header names a list or pattern of data files; one file is followed")
    if Path(name).is_absolute() or target.resolve().parent != Path(path).resolve().parent:
        raise refusal("unsafe-path", "the header names a data file outside its own folder")
    if not target.is_file():
        raise refusal("unreadable", "the data file that the header names does not exist")
    return str(target)


def _check_geometry_is_stated(kind: str, fields: dict[str, str]) -> None:
    """Raise Refusal when the header leaves spacing or orientation to guesswork."""
    if kind == "nrrd" and not ("space directions" in fields and ("space" in fields or "space dimension" in fields)):
        raise refusal("no-geometry", "the NRRD header has no space and space directions")
    if kind == "mha" and not ("elementspacing" in fields or "elementsize" in fields):
        raise refusal("no-geometry", "the MetaImage header has no ElementSpacing")


def _shape(reader: sitk.ImageFileReader) -> tuple[int, int, int]:
    """Return the (z, y, x) sizes. Raises Refusal for vectors and for more than three axes above one."""
    sizes = [int(n) for n in reader.GetSize()]
    if reader.GetNumberOfComponents() != 1 or "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()):
        components = int(reader.GetNumberOfComponents())
        raise refusal(
            "not-scalar", f"{components} components a voxel; one real number is expected", components=components
        )
    if any(n > 1 for n in sizes[3:]):
        count = int(np.prod(sizes[3:], dtype=object))
        raise refusal("four-dimensional", f"the file holds {count} volumes (sizes {sizes})", shape=sizes, volumes=count)
    if min(sizes) < 1 or len(sizes) < 2:
        raise refusal("unreadable", f"the header states the sizes {sizes}", shape=sizes)
    x, y, z = (*sizes, 1)[:3]
    return (z, y, x)


def _check_length(data_file: str, fields: dict[str, str], reader: sitk.ImageFileReader, shape: tuple[int, ...]) -> None:
    """Raise Refusal when the data file cannot hold the voxels that the header promises."""
    bits = {"8": 1, "16": 2, "32": 4, "64": 8}
    name = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    itemsize = next((n for width, n in bits.items() if width in name), 8 if name == "64-bit float" else 4)
    promised = shape[0] * shape[1] * shape[2] * itemsize
    size = os.path.getsize(data_file)
    encoding = fields.get("encoding", "raw").lower()
    compressed = fields.get("compresseddata", "false").lower() == "true" or encoding in ("gzip", "gz")
    if (
        encoding in ("bzip2", "bz2", "hex", "text", "txt", "ascii")
        or fields.get("binarydata", "true").lower() == "false"
    ):
        raise refusal("unsupported-compression", f"the encoding {encoding!r} is not read; raw and gzip are")
    if promised > (size * GZIP_MAX_RATIO if compressed else size):
        reason = f"the header promises {promised} bytes; the file of {size} bytes cannot hold them"
        raise refusal("truncated-pixel-data", reason, promised_bytes=promised, file_bytes=size)


def _affine(reader: sitk.ImageFileReader) -> np.ndarray:
    """Return the (4, 4) affine (z, y, x) → RAS mm; ITK's world is LPS."""
    n = reader.GetDimension()
    direction = np.eye(3)
    direction[: min(n, 3), : min(n, 3)] = np.array(reader.GetDirection()).reshape(n, n)[:3, :3]
    spacing = np.array([*reader.GetSpacing(), 1.0, 1.0])[:3]
    origin = np.array([*reader.GetOrigin(), 0.0, 0.0])[:3]
    affine = np.eye(4)
    affine[:3, :3] = (direction * spacing)[:, ::-1]
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

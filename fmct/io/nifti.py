"""NIfTI files, through nibabel. Everything in the header is checked before a voxel is allocated."""

import gzip
import os
import zlib
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from fmct.errors import Refusal
from fmct.io.affine import check_affine, slices_first
from fmct.io.assemble import ScaledVoxels, check_size, checked_stack, decide_modality, place, units_of
from fmct.io.candidate import Candidate
from fmct.io.normalised_nifti import read_provenance
from fmct.io.policy import ReadPolicy
from fmct.io.refusals import refusal
from fmct.volume import Volume

GZIP_MAX_RATIO = 1040  # deflate cannot compress further; a header that promises more than this is lying
EXTENSIONS_LIMIT = 1 << 24
_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}


def read_nifti(candidate: Candidate, policy: ReadPolicy, named: str | None) -> Volume:
    """Return the canonical Volume of a NIfTI file. Raises Refusal."""
    path = candidate.paths[0]
    image = _open(path)
    header = image.header
    shape, volumes = _spatial_shape(header, policy.frame)
    check_size(shape[::-1], policy)
    stored_dtype = header.get_data_dtype()
    if stored_dtype.kind not in "iuf":
        raise refusal("not-scalar", f"voxels of type {stored_dtype}; expected one real number a voxel")
    _check_length(path, header, shape, stored_dtype.itemsize * volumes)
    affine = _affine(header, shape, policy)
    check_affine(affine, shape[::-1])
    order, stack = slices_first(affine, shape[::-1])
    mend = checked_stack(stack, policy)
    slope, intercept = _scale(image)
    stored = _stored(image, shape, policy.frame if volumes > 1 else None).transpose(2, 1, 0).transpose(order)
    modality, voxels, facts = decide_modality(ScaledVoxels(stored, slope, intercept), named, policy)
    facts |= read_provenance(header)
    if volumes > 1:
        facts["frame"] = policy.frame
    return place(voxels, stack, mend, modality=modality, units=units_of(modality, policy), facts=facts)


def _open(path: str) -> Any:
    """Return nibabel's image of a file, voxels not read. Raises Refusal."""
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if compressed != path.lower().endswith(".gz"):
        raise refusal("unreadable", "the name and the content disagree about gzip compression")
    _check_raw_header(path, compressed)
    try:
        image = nib.load(path)
    except Exception as error:  # nibabel raises many kinds on damaged headers; none may stop a run
        raise refusal("unreadable", f"the NIfTI header is damaged ({type(error).__name__})") from None
    if not isinstance(image, (nib.Nifti1Image, nib.Nifti1Pair)):
        raise refusal("not-an-image", f"the file is {type(image).__name__}, not NIfTI")
    return image


def _check_raw_header(path: str, compressed: bool) -> None:
    """Raise Refusal for two raw fields before nibabel acts on them.

    It would read all that lies before a far vox_offset, and would pass over an infinite scl_slope in silence.
    """
    try:
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            head = file.read(540)
    except (EOFError, OSError, zlib.error):
        raise refusal("unreadable", "the gzip stream is damaged in the header") from None
    order = "<" if head[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    second = head[4:6] == b"n+"
    field = np.frombuffer(head[168:176] if second else head[108:112], dtype=order + ("i8" if second else "f4"))
    offset = float(field[0]) if len(field) else 0.0
    if not 0 <= offset <= EXTENSIONS_LIMIT:
        raise refusal("unreadable", f"the header field vox_offset is {offset:g}", vox_offset=str(offset))
    scale = np.frombuffer(head[176:192] if second else head[112:120], dtype=order + ("f8" if second else "f4"))
    if np.isinf(scale).any():
        raise refusal("bad-rescale", "scl_slope or scl_inter is infinite")


def _spatial_shape(header: Any, frame: int | None) -> tuple[tuple[int, int, int], int]:
    """Return (x, y, z) sizes, and how many volumes there are; trailing axes of one are dropped.

    Raises Refusal for several volumes unless `frame` says which of them is meant.
    """
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]):
        raise refusal("unreadable", f"the header field dim is {dim}", dim=dim)
    sizes = dim[1 : dim[0] + 1]
    if any(n > 1 for n in sizes[3:]):
        count = int(np.prod(sizes[3:], dtype=object))
        if frame is None or frame >= count:
            reason = f"the file holds {count} volumes (dim {sizes}); frame=0 … {count - 1} chooses one"
            raise refusal("four-dimensional", reason, shape=sizes, volumes=count)
        return (sizes[0], sizes[1], sizes[2]), count
    sizes += [1] * (3 - len(sizes))
    return (sizes[0], sizes[1], sizes[2]), 1


def _check_length(path: str, header: Any, shape: tuple[int, int, int], itemsize: int) -> None:
    """Raise Refusal when the file cannot hold the voxels that the header promises."""
    promised = shape[0] * shape[1] * shape[2] * itemsize
    if str(header["magic"].item().decode("latin-1")).startswith("n+"):
        promised += int(header["vox_offset"])
    else:
        return  # a pair: nibabel checks the length of the data file when it maps it
    size = os.path.getsize(path)
    available = size * GZIP_MAX_RATIO if path.lower().endswith(".gz") else size
    if promised > available:
        reason = f"the header promises {promised} bytes; the file of {size} bytes cannot hold them"
        raise refusal("truncated-pixel-data", reason, promised_bytes=promised, file_bytes=size)


def _affine(header: Any, shape: tuple[int, int, int], policy: ReadPolicy) -> np.ndarray:
    """Return the (4, 4) affine (z, y, x) → RAS mm. Raises Refusal when sform and qform disagree or both are absent."""
    try:
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):
        raise refusal("bad-geometry", "the quaternion of the NIfTI header is damaged") from None
    if sform is None and qform is None:
        raise refusal("no-geometry", "sform_code and qform_code are 0: the file does not say how it is oriented")
    for name, affine in (("sform", sform), ("qform", qform)):
        if affine is not None and not np.isfinite(affine).all():
            raise refusal("bad-geometry", f"the {name} of the header is not finite")
    if sform is not None and qform is not None and policy.nifti_affine == "agree":
        _compare(sform, qform, shape)
    chosen = qform if sform is None or (policy.nifti_affine == "qform" and qform is not None) else sform
    assert chosen is not None
    unit = _MM.get(header.get_xyzt_units()[0], 1.0)
    affine = np.asarray(chosen, dtype=np.float64).copy()
    affine[:3] *= unit
    return affine[:, [2, 1, 0, 3]]


def _compare(sform: np.ndarray, qform: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Raise Refusal when the corners of the volume lie more than half a voxel apart under sform and qform.

    A sheared sform cannot be written as a qform; there the sform counts, and the shear is reported as a tilt.
    """
    axes = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        return
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])], dtype=float)
    apart = float(np.linalg.norm((corners @ (sform - qform).T)[:, :3], axis=1).max())
    allowed = 0.5 * float(np.linalg.norm(sform[:3, :3], axis=0).min())
    if not apart <= allowed:
        reason = f"sform and qform put a corner {apart:.2f} mm apart; nifti_affine=sform or qform chooses one"
        raise refusal("ambiguous-orientation", reason, corner_distance_mm=apart, allowed_mm=allowed)


def _scale(image: Any) -> tuple[float, float]:
    """Return (slope, intercept); 1 and 0 where the header sets none. Raises Refusal for absurd values."""
    # nibabel moves the scale from the header to the data object when it opens a file.
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    if not (np.isfinite([slope, intercept]).all() and 1e-12 <= abs(slope) <= 1e6 and abs(intercept) <= 1e9):
        reason = f"scl_slope {slope:g} and scl_inter {intercept:g} are absurd"
        raise refusal("bad-rescale", reason, slope=slope, intercept=intercept)
    return slope, intercept


def _stored(image: Any, shape: tuple[int, int, int], frame: int | None) -> np.ndarray:
    """Return the stored voxels (x, y, z), of volume `frame` where there are several.

    Raises Refusal when the data ends early or is damaged.
    """
    try:
        stored = np.asanyarray(image.dataobj.get_unscaled())
        if frame is not None:
            stored = stored.reshape((*shape, -1), order="F")[..., frame]
        return stored.reshape(shape, order="F")
    except Refusal:
        raise
    except (EOFError, OSError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise refusal("truncated-pixel-data", f"the voxels cannot be read whole ({type(error).__name__})") from None

"""Why a file or a series is not taken: stable codes, and the record of one refusal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmct.errors import Refusal

REFUSAL_CODES: dict[str, str] = {
    "not-an-image": "the file is no scan: neither DICOM with pixels nor NIfTI, NRRD, MHA or MHD",
    "archive": "an archive (zip, tar, 7z…): unpack it first; fmct opens no archives",
    "unreadable": "the header or the pixel data cannot be read: damaged, truncated or lying about itself",
    "truncated-pixel-data": "the file holds fewer pixel bytes than its header promises",
    "too-large": "more voxels than the policy's max_voxels",
    "unsafe-path": "a header points to a data file outside its own folder",
    "unsupported-compression": "no decoder for this transfer syntax is installed",
    "not-scalar": "colour, vector or complex pixels; one number a voxel is expected",
    "multi-frame": "several frames in one file without the functional groups that place them in space",
    "four-dimensional": "several volumes in one file or series (time points, echoes, phases)",
    "wrong-modality": "the header or the policy names a modality that is not asked for",
    "scout": "a localizer, topogram or survey image",
    "derived-image": "a secondary capture, screenshot, projection or reformat (ImageType, SOP class)",
    "burned-in-annotation": "the header says that text is burned into the pixels",
    "mixed-kernels": "several reconstruction kernels under one series UID; kernels=split makes each its own series",
    "too-few-slices": "fewer voxels along an axis than the policy's min_slices",
    "no-geometry": "positions, orientation or pixel spacing are missing",
    "bad-geometry": "positions, orientation or spacing are not finite, singular or absurd",
    "ambiguous-orientation": "two orientations in one header disagree (NIfTI sform and qform)",
    "gantry-tilt": "slices are sheared against their normal; tilt=resample mends it",
    "non-uniform-spacing": "slices are not at regular positions; spacing=resample mends it",
    "missing-slices": "gaps that are multiples of the slice distance; spacing=resample fills short ones",
    "duplicate-slices": "several slices at one position; duplicates=drop removes exact copies of a file",
    "bad-rescale": "rescale slope or intercept is missing, not finite, absurd, applied twice, or not to HU",
    "implausible-hu": "the values are not Hounsfield units of a CT: a mask, PET, MR, or a shifted or constant volume",
    "label-map": "a few distinct integers where an image is expected",
    "non-finite-values": "NaN or infinite voxels",
}


@dataclass(frozen=True)
class Rejected:
    """One file, or one series by its first file, that is not taken. `files` counts what went with it."""

    path: str
    code: str
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    files: int = 1


def refusal(code: str, reason: str, **numbers: Any) -> Refusal:
    """Return the Refusal of a known code, its numbers rounded to what a reader can use."""
    assert code in REFUSAL_CODES, code
    return Refusal(code, reason, {key: rounded(value) for key, value in numbers.items()})


def rounded(value: Any) -> Any:
    """Return plain Python numbers of at most six significant digits, also inside lists and mappings."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if hasattr(value, "tolist"):
        return rounded(value.tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value

"""NIfTI files that say how their values were normalised: a header extension, so that nothing is normalised twice."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Extension

from fmct.artefacts import check_stamp, stamped
from fmct.errors import ArtefactError
from fmct.io.refusals import refusal
from fmct.normalise import FACT
from fmct.volume import Volume

FORMAT = ("fmct-normalised", "1.0")
_COMMENT = 6  # the extension code of NIfTI for plain text


def write_normalised(path: str | Path, volume: Volume) -> None:
    """Write a volume as float32 NIfTI on its own grid, with what its facts say of its normalisation, if anything."""
    path = Path(path)
    affine = volume.affine[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(np.ascontiguousarray(volume.voxels.transpose(2, 1, 0), dtype=np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    if FACT in volume.facts:
        text = json.dumps(stamped(*FORMAT, {FACT: volume.facts[FACT]}), allow_nan=False)
        image.header.extensions.append(Nifti1Extension(_COMMENT, text.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)


def read_provenance(header: Any) -> dict[str, Any]:
    """Return {"normalised": record} of a NIfTI header that says so, else {}. Raises Refusal for a damaged record."""
    for extension in header.extensions:
        content = extension.get_content()
        text = content if isinstance(content, bytes) else str(content).encode()
        if extension.get_code() != _COMMENT or FORMAT[0].encode() not in text:
            continue
        try:
            return {FACT: check_stamp(json.loads(text.rstrip(b"\0")), *FORMAT, "the NIfTI header")[FACT]}
        except (ValueError, KeyError, ArtefactError):
            told = "the NIfTI header's note on its normalisation is damaged: how it was made is unknown"
            raise refusal("unreadable", told) from None
    return {}

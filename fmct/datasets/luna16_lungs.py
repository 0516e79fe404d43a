"""LUNA16's lung masks (seg-lungs-LUNA16/<series UID>.mhd) as masks of where nodules are looked for."""

from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from fmct.errors import DataError

FOLDER = "seg-lungs-LUNA16"
_LUNGS = (3, 4)  # right and left; 5 is the trachea
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def lungs_folder(*places: Path) -> Path | None:
    """Return the folder of lung masks in or beside one of these places, None where there is none."""
    found = (place / FOLDER for start in places for place in (start, start.parent))
    return next((folder for folder in found if folder.is_dir()), None)


def write_lungs(folder: Path, lungs: Path, series: Iterable[tuple[str, str]]) -> int:
    """Write `folder`/ID.nii.gz, 1 in both lungs, of every series that has a mask; return how many have.

    lungs: seg-lungs-LUNA16. series: (series UID, id in the store) of each. Raises DataError for a mask without lungs.
    """
    written = 0
    for uid, name in series:
        path = lungs / f"{uid}.mhd"
        if not path.is_file():
            continue
        inside, affine = _read(path)
        folder.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(inside, affine).to_filename(folder / f"{name}.nii.gz")
        written += 1
    return written


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 (x, y, z), affine xyz → RAS mm)."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: not readable as a lung mask ({str(error).splitlines()[-1][:120]}).") from None
    values = sitk.GetArrayFromImage(image)
    inside = np.isin(values, _LUNGS).astype(np.uint8)
    if values.ndim != 3 or not inside.any():
        held = np.unique(values)[:8].tolist()
        raise DataError(f"{path}: no lung in it: expected the labels 3 and 4 on three axes; found {held}.")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.ascontiguousarray(inside.transpose(2, 1, 0)), _TO_RAS @ affine

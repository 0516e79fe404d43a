"""How the embedded samples were made from the public originals: `python -m fmct.samples.build SOURCE` (see README.md).

SOURCE holds `ct/` and `sts/` as the README lists them. In-plane smoothing against aliasing, then linear resampling to
3 mm in plane; slices finer than 3 mm are resampled along z too, thicker ones keep their own positions. Masks take the
same path and are cut at one half.
"""

import shutil
import sys
from pathlib import Path

import SimpleITK as sitk

TARGET_MM = 3.0
SAMPLES = Path(__file__).resolve().parent
VOLUMES = (
    "chest_nc_lidc0314_3mm.nii.gz",
    "abdomen_ce_crlm1006.nii.gz",
    "abdomenpelvis_nc_ts3mm.nii.gz",
    "cardiac_cta_ts1p5mm.nii.gz",
    "thigh_nc_sts033.nii.gz",
    "pelvis_nc_sts036_dicom",
)


def to_target(image: sitk.Image, *, fill: float) -> sitk.Image:
    """Return `image` as float32 at TARGET_MM on every axis that is finer than that."""
    image = sitk.Cast(image, sitk.sitkFloat32)
    source = image.GetSpacing()
    target = [max(s, TARGET_MM) for s in source]
    # The width that, added to the source's own voxel, makes the target's voxel (FWHM in quadrature).
    sigma = [(max(t * t - s * s, 0.0) ** 0.5) / 2.355 for s, t in zip(source, target, strict=True)]
    if any(sigma):
        image = sitk.DiscreteGaussian(image, [max(s, 1e-6) ** 2 for s in sigma])
    size = [max(1, int(n * s / t)) for n, s, t in zip(image.GetSize(), source, target, strict=True)]
    half = [(t - s) / 2 for s, t in zip(source, target, strict=True)]
    origin = image.TransformContinuousIndexToPhysicalPoint([h / s for h, s in zip(half, source, strict=True)])
    return sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, origin, target, image.GetDirection(), fill)


def write_ct(image: sitk.Image, path: Path) -> None:
    """Write HU as int16 NIfTI; values below −1024 are padding and become air."""
    image = sitk.Maximum(sitk.Cast(image, sitk.sitkFloat32), -1024.0)
    sitk.WriteImage(sitk.Cast(sitk.Round(to_target(image, fill=-1000.0)), sitk.sitkInt16), str(path), True)


def read(path: Path) -> sitk.Image:
    """Return a NIfTI file or a DICOM folder as an image."""
    if path.is_file():
        return sitk.ReadImage(str(path))
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))


def main(source: Path) -> None:
    """Write every sample below this folder."""
    (SAMPLES / "ct").mkdir(exist_ok=True)
    for name in VOLUMES:
        stem = name.removesuffix(".nii.gz").removesuffix("_dicom")
        write_ct(read(source / "ct" / name), SAMPLES / "ct" / f"{stem}.nii.gz")
    shutil.copytree(
        source / "ct/abdomen_ce_jpeg2000_dicom", SAMPLES / "ct/abdomen_ce_jpeg2000_dicom", dirs_exist_ok=True
    )
    for patient in sorted((source / "sts").glob("STS_*")):
        folder = SAMPLES / "sts" / patient.name
        folder.mkdir(parents=True, exist_ok=True)
        write_ct(read(patient / "ct.nii.gz"), folder / "ct.nii.gz")
        mask = to_target(read(patient / "ct_gtv.nii.gz"), fill=0.0)
        sitk.WriteImage(sitk.Cast(mask >= 0.5, sitk.sitkUInt8), str(folder / "ct_gtv.nii.gz"), True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

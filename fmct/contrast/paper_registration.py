"""Rigid registration of a scan to a template, as the published contrast system does it, but repeatable.

The template is a named file with a hash, never "the first scan of the folder"; the sampling is seeded, one thread
works, and what lies outside the scan becomes −1024 HU.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fmct.artefacts import sha256_of
from fmct.contrast.paper_settings import BodyPartProfile, PaperRegistration
from fmct.errors import ConfigError, DataError, Refusal
from fmct.io import read_volume
from fmct.registration.register import to_image
from fmct.shapes import TripleF
from fmct.volume import Volume

OUTSIDE_HU = -1024.0
WATER_HU = 0.0
PIXEL_TYPE_HU = float(sitk.sitkFloat32)  # what the published code gives as the value outside, taking it for the type
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Template:
    """What scans are registered to: int16 HU (D, H, W) on a canonical grid. sha256: of the file it was read from."""

    name: str
    sha256: str
    voxels: np.ndarray
    affine: np.ndarray

    @property
    def volume(self) -> Volume:
        """The template as a Volume."""
        return Volume(self.voxels, self.affine)

    @property
    def content_hash(self) -> str:
        """A hash of voxels and grid, by which a cache knows it."""
        digest = hashlib.sha256(np.ascontiguousarray(self.voxels).tobytes())
        digest.update(np.asarray(self.affine, dtype=np.float64).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Aligned:
    """A scan on the template's grid.

    hu: (D, H, W) float32. inside: (D, H, W) bool, where the scan has a value. to_scan: (4, 4), RAS mm of the template's
    world → RAS mm of the scan's. similarity: Mattes mutual information at the end, in nats.
    """

    hu: np.ndarray
    inside: np.ndarray
    to_scan: np.ndarray
    similarity: float


def read_template(path: str | Path, spacing_mm: TripleF, *, sha256: str = "") -> Template:
    """Return the template of a CT file, resampled. Raises ConfigError without a file, or with another hash than given.

    Raises DataError for a scan that cannot be read.
    """
    file = Path(path)
    if not str(path) or not file.is_file():
        raise ConfigError(
            f"input.template={path}: no such file. Name the CT that every scan is registered to (NIfTI, NRRD or MHA), "
            "one of a patient whose body part is the profile's, best outside the test set."
        )
    found = sha256_of(file)
    if sha256 and found != sha256.lower():
        raise ConfigError(
            f"{file}: its SHA-256 is {found}, and input.template_sha256 says {sha256}: another template gives other "
            "inputs. Bring back the former file, or correct the hash."
        )
    volume = respaced(read_volume(file).oriented(), spacing_mm)
    voxels = np.rint(volume.voxels).astype(np.int16)
    return Template(file.name, found, voxels, volume.affine)


def respaced(volume: Volume, spacing_mm: TripleF, *, legacy: bool = False) -> Volume:
    """Return a canonical CT resampled linearly, float32, first voxel in place: n · old / new voxels, rounded.

    legacy: what lies beyond the last voxel is 8 HU, not −1024.
    """
    image = to_image(Volume(volume.voxels.astype(np.float32), volume.affine))
    new = [float(s) for s in reversed(spacing_mm)]
    size = [
        max(1, round(n * old / wanted)) for n, old, wanted in zip(image.GetSize(), image.GetSpacing(), new, strict=True)
    ]
    filter_ = _resampler(PIXEL_TYPE_HU if legacy else OUTSIDE_HU)
    filter_.SetOutputOrigin(image.GetOrigin())
    filter_.SetOutputDirection(image.GetDirection())
    filter_.SetOutputSpacing(new)
    filter_.SetSize(size)
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] / volume.spacing * np.asarray(spacing_mm)
    return Volume(sitk.GetArrayFromImage(filter_.Execute(image)), affine)


def align(scan: Volume, template: Template, config: PaperRegistration, *, legacy: bool = False) -> Aligned:
    """Return a resampled canonical CT on the template's grid, rigidly registered; seeded, so equal every time.

    legacy: outside the scan is 0 HU, not −1024. Raises Refusal (not-registered) when the two share nothing.
    """
    fixed = to_image(Volume(template.voxels.astype(np.float32), template.affine))
    moving = to_image(Volume(scan.voxels.astype(np.float32), scan.affine))
    transform, similarity = _registered(fixed, moving, config)
    filter_ = _resampler(WATER_HU if legacy else OUTSIDE_HU)
    filter_.SetReferenceImage(fixed)
    filter_.SetTransform(transform)
    hu = sitk.GetArrayFromImage(filter_.Execute(moving))
    ones = sitk.Image(moving.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(moving)
    filter_.SetInterpolator(sitk.sitkNearestNeighbor)
    filter_.SetDefaultPixelValue(0)
    inside = sitk.GetArrayFromImage(filter_.Execute(ones)).astype(bool)
    return Aligned(hu, inside, _ras(transform), similarity)


def _registered(fixed: sitk.Image, moving: sitk.Image, config: PaperRegistration) -> tuple[sitk.Transform, float]:
    """Return (fixed point → moving point in LPS mm, mutual information)."""
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=config.bins)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(config.sampling, config.seed)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescent(
        learningRate=config.learning_rate,
        numberOfIterations=config.iterations,
        convergenceMinimumValue=config.convergence,
        convergenceWindowSize=config.window,
        # The published rate as it is: SimpleITK's default replaces it by one that moves a voxel at the first step,
        # which close to the optimum is so large that the scan is thrown away from it.
        estimateLearningRate=method.Never,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(config.shrink))
    method.SetSmoothingSigmasPerLevel(list(config.smoothing_mm))
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    try:
        start = sitk.CenteredTransformInitializer(
            fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
        )
        method.SetInitialTransform(sitk.Euler3DTransform(start), inPlace=False)
        transform = method.Execute(fixed, moving)
    except RuntimeError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason")
        raise Refusal("not-registered", f"registration to the template failed: {reason.strip()[:200]}") from None
    return transform, -float(method.GetMetricValue())


def _resampler(outside: float) -> sitk.ResampleImageFilter:
    filter_ = sitk.ResampleImageFilter()
    filter_.SetNumberOfThreads(1)
    filter_.SetNumberOfWorkUnits(1)
    filter_.SetInterpolator(sitk.sitkLinear)
    filter_.SetOutputPixelType(sitk.sitkUnknown)
    filter_.SetDefaultPixelValue(outside)
    return filter_


def _ras(transform: sitk.Transform) -> np.ndarray:
    """Return an affine ITK transform as a (4, 4) matrix of RAS mm."""
    zero = np.asarray(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.asarray(transform.TransformPoint(tuple(row))) - zero for row in np.eye(3).tolist()]
    matrix = np.eye(4)
    matrix[:3, :3] = _RAS_TO_LPS @ np.stack(columns, axis=1) @ _RAS_TO_LPS
    matrix[:3, 3] = _RAS_TO_LPS @ zero
    return matrix


def check_template(template: Template, profile: BodyPartProfile) -> None:
    """Raise DataError when a template does not hold every slice that a profile keeps."""
    depth = template.voxels.shape[0]
    if depth < profile.slab - profile.first:
        raise DataError(
            f"the template {template.name} has {depth} slices after resampling, and the profile {profile.name} keeps "
            f"slices down to the {profile.slab - profile.first}th from its top. Take a template that covers the body "
            "part, or another profile."
        )

"""Registration of a paired scan to the scan that is used alone later, through SimpleITK: rigid, then B-splines.

The non-contrast scan is fixed and the angiogram moves. Contrast agent has no counterpart in the fixed scan and would
pull the deformation, so enhanced blood is set to a ceiling before the two are compared; the warped result is untouched.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from fmct.errors import DataError
from fmct.registration.warping import warp
from fmct.shapes import Triple
from fmct.volume import AIR_HU, Volume

METHODS = ("identity", "given", "rigid", "rigid+bspline")
BLOOD_CEILING_HU = 100
BONE_CEILING_HU = 400
_LPS = np.diag([-1.0, -1.0, 1.0])
_LEVELS = 2


@dataclass(frozen=True)
class RegistrationConfig:
    """How two scans are registered.

    working_mm: the isotropic grid that is compared. knots_mm: distance of the B-spline's knots. rigid_steps,
    bspline_steps: at most so many iterations a level. sampling: share of voxels that are compared. threads:
    more than one is faster, and then the last digits depend on the machine.
    """

    working_mm: float = 3.0
    knots_mm: float = 40.0
    rigid_steps: int = 100
    bspline_steps: int = 20
    sampling: float = 0.05
    seed: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Registered:
    """A moving scan on the fixed grid.

    field_mm: (D, H, W, 3), point p of the fixed scan lies at p + field_mm in the moving one, RAS mm; None when nothing
    moved. valid: (D, H, W) bool, inside both fields of view.
    """

    warped: Volume
    field_mm: np.ndarray | None
    valid: np.ndarray
    method: str


def register(
    moving: Volume,
    fixed: Volume,
    *,
    method: str = "rigid+bspline",
    given: np.ndarray | str | Path | None = None,
    blood: np.ndarray | None = None,
    config: RegistrationConfig | None = None,
) -> Registered:
    """Return `moving` on the grid of `fixed`.

    method: `identity` trusts the world coordinates (two series of one examination); `given` applies `given`, a
    displacement (D, H, W, 3) in RAS mm or a file (see `read_field`); `rigid` and `rigid+bspline` register CT to CT.
    blood: (D, H, W) bool in the moving scan, heart and vessels; without it everything above 100 HU is capped in both,
    bones too. Raises DataError for an unknown method, a missing transform, or a registration that finds nothing.
    """
    if method not in METHODS:
        raise DataError(f"registration: expected one of {', '.join(METHODS)}; got {method!r}.")
    if (given is not None) != (method == "given"):
        raise DataError(f"registration={method} {'needs' if method == 'given' else 'takes no'} transform.")
    field = None
    if given is not None:
        field = given if isinstance(given, np.ndarray) else read_field(given, fixed)
    elif method != "identity":
        field = field_of(_transform(moving, fixed, method, blood, config or RegistrationConfig()), fixed)
    result = warp(moving, fixed, field)
    return Registered(result.volume, field, result.valid, method)


def suppress_contrast(volume: Volume, blood: np.ndarray | None = None, *, ceiling_hu: int = BLOOD_CEILING_HU) -> Volume:
    """Return a CT whose enhanced blood is set to `ceiling_hu`: inside `blood`, or everywhere where none is given."""
    capped = np.minimum(volume.voxels, ceiling_hu)
    voxels = capped if blood is None else np.where(blood, capped, volume.voxels)
    return Volume(voxels, volume.affine, volume.modality, volume.units, volume.facts)


def read_field(path: str | Path, fixed: Volume) -> np.ndarray:
    """Return the displacement (D, H, W, 3), RAS mm, of a transform file on the grid of `fixed`.

    As ITK, ANTs and Elastix write them: a transform (.tfm, .txt, .mat, .xfm, .hdf, .h5) or a displacement image (.nii,
    .nii.gz, .mha, .nrrd; LPS mm), mapping fixed points to moving ones. Raises DataError when it is neither.
    """
    name = str(path)
    try:
        if name.lower().endswith((".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")):
            image = sitk.ReadImage(name, sitk.sitkVectorFloat64)
            transform = sitk.Transform(sitk.DisplacementFieldTransform(image))
        else:
            transform = sitk.ReadTransform(name)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise DataError(f"{name}: not readable as a transform or displacement ({reason}).") from None
    return field_of(transform, fixed)


def write_field(path: str | Path, field_mm: np.ndarray, fixed: Volume) -> None:
    """Write a displacement (D, H, W, 3), RAS mm, as ITK's displacement image; `read_field` reads it."""
    lps = np.ascontiguousarray(field_mm.astype(np.float64) @ _LPS)
    image = sitk.GetImageFromArray(lps, isVector=True)
    _place(image, fixed)
    sitk.WriteImage(image, str(path))


def field_of(transform: sitk.Transform, fixed: Volume) -> np.ndarray:
    """Return the displacement (D, H, W, 3) float32, RAS mm, of an ITK transform (fixed point → moving point)."""
    frame = to_image(Volume(np.zeros(fixed.shape, dtype=np.uint8), fixed.affine, "mask", "fraction"))
    image = sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat64,
        frame.GetSize(),
        frame.GetOrigin(),
        frame.GetSpacing(),
        frame.GetDirection(),
    )
    return (sitk.GetArrayFromImage(image) @ _LPS).astype(np.float32)


def to_image(volume: Volume) -> sitk.Image:
    """Return a volume as SimpleITK image, in ITK's world (LPS mm)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels))
    _place(image, volume)
    return image


def _place(image: sitk.Image, volume: Volume) -> None:
    columns = _LPS @ volume.affine[:3, :3][:, ::-1]  # x, y, z
    spacing = np.linalg.norm(columns, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((columns / spacing).ravel().tolist())
    image.SetOrigin((_LPS @ volume.affine[:3, 3]).tolist())


def _transform(
    moving: Volume, fixed: Volume, method: str, blood: np.ndarray | None, config: RegistrationConfig
) -> sitk.Transform:
    """Return fixed point → moving point. Raises DataError when the two cannot be registered."""
    if not fixed.modality == moving.modality == "CT":
        raise DataError(
            f"registration={method} compares HU and needs two CT; got {fixed.modality} and {moving.modality}. Use "
            "identity for one examination in one frame of reference, or give a transform."
        )
    ceiling = BLOOD_CEILING_HU if blood is None else BONE_CEILING_HU
    compared = []
    for volume, where in ((fixed, None), (moving, blood)):
        plain = volume if volume is fixed else suppress_contrast(volume, where)
        clipped = np.clip(plain.voxels.astype(np.float32), AIR_HU, ceiling)
        compared.append(to_image(_working(Volume(clipped, volume.affine, "CT", "HU"), config.working_mm)))
    try:
        rigid = _rigid(compared[0], compared[1], config)
        if method == "rigid":
            return rigid
        return sitk.CompositeTransform([rigid, _bspline(compared[0], compared[1], rigid, config)])
    except RuntimeError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason")[:200]
        raise DataError(f"registration={method} failed: {reason.strip()}") from None


def _working(volume: Volume, spacing_mm: float) -> Volume:
    """Return a volume on a grid of at least `spacing_mm` along each axis, same extent and axes."""
    step = np.maximum(spacing_mm / volume.spacing, 1)
    shape: Triple = tuple(max(8, round(n / s)) for n, s in zip(volume.shape, step, strict=True))  # type: ignore
    step = np.array(volume.shape) / shape
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * step
    affine[:3, 3] = volume.world((step - 1) / 2)
    frame = Volume(np.zeros(shape, dtype=np.float32), affine, volume.modality, volume.units)
    return warp(volume, frame).volume


def _method(config: RegistrationConfig) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(config.threads)
    method.SetNumberOfWorkUnits(config.threads)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([2**level for level in reversed(range(_LEVELS))])
    method.SetSmoothingSigmasPerLevel([float(level) for level in reversed(range(_LEVELS))])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    return method


def _rigid(fixed: sitk.Image, moving: sitk.Image, config: RegistrationConfig) -> sitk.Transform:
    """Return the rigid transform of highest correlation, begun at the world coordinates or the centres, the better."""
    method = _method(config)
    method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(config.sampling, config.seed)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=config.rigid_steps, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    centred = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    centre = sitk.Euler3DTransform(centred)
    as_is = sitk.Euler3DTransform(centred)
    as_is.SetTranslation((0.0, 0.0, 0.0))
    begun = min((as_is, centre), key=lambda start: _metric_at(method, fixed, moving, start))
    method.SetInitialTransform(begun, inPlace=True)
    method.Execute(fixed, moving)
    return begun


def _metric_at(
    method: sitk.ImageRegistrationMethod, fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform
) -> float:
    """Return the metric of a start, infinite where the two do not meet at all."""
    method.SetInitialTransform(start, inPlace=False)
    try:
        return float(method.MetricEvaluate(fixed, moving))
    except RuntimeError:
        return float("inf")


def _bspline(
    fixed: sitk.Image, moving: sitk.Image, rigid: sitk.Transform, config: RegistrationConfig
) -> sitk.Transform:
    """Return the B-spline deformation, before the rigid transform, of least mean squared difference."""
    extent = [n * s for n, s in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
    # At half the final density first: the coarse knots carry breath and posture, the fine ones the rest.
    mesh = [max(1, round(length / config.knots_mm / 2)) for length in extent]
    spline = sitk.BSplineTransformInitializer(fixed, mesh, order=3)
    method = _method(config)
    method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(config.sampling, config.seed)
    # Not LBFGSB: it does not follow the growing number of knots (ITK 5.4, "Size of scales").
    method.SetOptimizerAsLBFGS2(
        numberOfIterations=config.bspline_steps, solutionAccuracy=1e-3, lineSearchMaximumEvaluations=10
    )
    method.SetMovingInitialTransform(rigid)
    method.SetInitialTransformAsBSpline(spline, inPlace=True, scaleFactors=[1, 2])
    method.Execute(fixed, moving)
    return spline

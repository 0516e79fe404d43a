"""Bias-field correction of magnitudes: N4 (Tustison et al. 2010) through SimpleITK, on the input's own grid.

The field is fitted to a shrunk image, as that is smooth, and evaluated on the full grid: the filter's own output would
be shrunk with the image. N4 takes logarithms, so it is of positive values only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk

from fmct.errors import ConfigError, DataError
from fmct.lesions.vessels import check_brain

SIGNED_SHARE = 0.01  # more voxels below 0 than interpolation makes: a signed image


@dataclass(frozen=True)
class BiasFieldConfig:
    """How N4 runs, or (enabled false) that it does not, as for QSM.

    shrink_mm: voxels are shrunk to about this side for the fit. iterations: at most, at each level of detail. points:
    of the coarsest spline grid along each axis. full_width, noise: of the deconvolution (ITK's defaults).
    """

    enabled: bool = True
    shrink_mm: float = 4.0
    iterations: list[int] = field(default_factory=lambda: [50, 50, 50])
    points: int = 4
    full_width: float = 0.15
    noise: float = 0.01

    def __post_init__(self) -> None:
        if self.shrink_mm <= 0 or not self.iterations or min(self.iterations) < 1 or self.points < 4:
            raise ConfigError(
                "bias_field: shrink_mm is positive, iterations are positive numbers, one a level, and points ≥ 4 (a "
                f"cubic spline); got {self}."
            )


def correct_bias(
    values: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    config: BiasFieldConfig | None = None,
    *,
    where: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Return (values divided by their bias field, the field), both (D, H, W) float32 on the input's grid.

    mask: bool, the brain; the field is fitted to its positive voxels, and has mean 1 over them. Raises DataError,
    beginning with `where`, for an empty mask or one on another grid, values that are not finite, and signed ones (QSM,
    phase), whose logarithm does not exist.
    """
    config, name = config or BiasFieldConfig(), f"{where}: bias field" if where else "bias field"
    check_brain(values, mask, name)
    negative = float(np.mean(values[mask] < 0))
    if negative > SIGNED_SHARE:
        raise DataError(
            f"{name}: {negative:.0%} of the voxels in the brain are negative, and N4 takes logarithms: a signed image "
            "(QSM, phase) has no multiplicative field. Leave the correction out: bias_field.enabled=false."
        )
    fitted = mask & (values > 0)
    if not fitted.any():
        raise DataError(f"{name}: no voxel in the brain is positive, so there is nothing to fit a field to.")
    logarithm = _log_field(values, fitted, spacing_mm, config)
    logarithm -= logarithm[fitted].mean(dtype=np.float64)
    bias = np.exp(logarithm, dtype=np.float32)
    bias /= bias[fitted].mean(dtype=np.float64)
    return values.astype(np.float32) / bias, bias


def _log_field(
    values: np.ndarray, fitted: np.ndarray, spacing_mm: Sequence[float], config: BiasFieldConfig
) -> np.ndarray:
    full = _image(np.where(fitted, values, 0).astype(np.float32), spacing_mm)
    inside = _image(fitted.astype(np.uint8), spacing_mm)
    shrink = [
        max(1, min(int(config.shrink_mm // step), count // config.points))
        for step, count in zip(spacing_mm, values.shape, strict=True)
    ]
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetNumberOfThreads(1)  # sums in one order, so that the field is bit-equal on every run
    correction.SetMaximumNumberOfIterations(list(config.iterations))
    correction.SetNumberOfControlPoints([config.points] * 3)
    correction.SetBiasFieldFullWidthAtHalfMaximum(config.full_width)
    correction.SetWienerFilterNoise(config.noise)
    correction.Execute(sitk.Shrink(full, shrink[::-1]), sitk.Shrink(inside, shrink[::-1]))
    return sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(full)).astype(np.float32)


def _image(values: np.ndarray, spacing_mm: Sequence[float]) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([float(s) for s in reversed(list(spacing_mm))])
    return image

"""A predicted mask beside its reference, in millimetres: Dice, surface Dice, HD95, volumes. Surfaces are MONAI's."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

MM3_PER_ML = 1000.0
SURFACE_TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class OverlapScores:
    """dice: NaN where both are empty. surface_dice: at a tolerance. hd95_mm: NaN where either is empty."""

    dice: float
    surface_dice: float
    hd95_mm: float
    reference_ml: float
    predicted_ml: float

    @property
    def volume_error_ml(self) -> float:
        """Predicted minus reference."""
        return self.predicted_ml - self.reference_ml


def overlap_scores(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
) -> OverlapScores:
    """Return the scores of two bool masks (D, H, W) on one grid.

    Surface Dice (Nikolov et al. 2018): the share of both surfaces, as voxels of their edges, that lies within the
    tolerance of the other. HD95: the larger of both directions' 95th percentiles. An empty prediction of something has
    Dice and surface Dice 0 and no HD95; nothing predicted of nothing is undefined, not perfect.
    """
    a, b = np.asarray(predicted, dtype=bool), np.asarray(reference, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"overlap_scores: masks of shape {a.shape} and {b.shape} are not on one grid.")
    ml = float(np.prod(spacing_mm)) / MM3_PER_ML
    volumes = (float(b.sum()) * ml, float(a.sum()) * ml)
    if not a.any() and not b.any():
        return OverlapScores(math.nan, math.nan, math.nan, *volumes)
    if not a.any() or not b.any():
        return OverlapScores(0.0, 0.0, math.nan, *volumes)
    dice = 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())
    return OverlapScores(dice, *_surfaces(a, b, spacing_mm, tolerance_mm), *volumes)


def _surfaces(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float) -> tuple[float, float]:
    """Return (surface Dice, HD95 mm), computed on the box around both masks with a rim, so that edges are edges."""
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    box = ndimage.find_objects((a | b).astype(np.int8))[0]
    pair = [torch.from_numpy(np.pad(mask[box], 1).astype(np.float32))[None, None] for mask in (a, b)]
    spacing = [float(step) for step in spacing_mm]
    with warnings.catch_warnings():
        # MONAI's own metrics call one of its functions in a way that it deprecates.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        surface = compute_surface_dice(*pair, class_thresholds=[tolerance_mm], include_background=True, spacing=spacing)
        hausdorff = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
    return float(surface[0, 0]), float(hausdorff[0, 0])

"""Losses of small-lesion networks: cross-entropy weighted voxel by voxel, soft Dice, and features to be imitated.

Sundaresan et al. 2023 as meant: the published code averages the cross-entropy before it multiplies by the weights, and
takes Dice of a mask that was thresholded, which has no gradient. `weighting="legacy_global"` is the former, for
comparison.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision

WEIGHTINGS = ("voxel", "legacy_global")
DICE_SMOOTHING = 1.0
_REACH = 4  # standard deviations at which a kernel is cut off


def weighted_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor, *, weighting: str = "voxel") -> Tensor:
    """Return Σ w · BCE / Σ w of equally shaped logits, targets in [0, 1] and weights ≥ 0; a scalar.

    weighting: `legacy_global` gives mean(BCE) · mean(w), in which no weight has a place. All weights zero is 0.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(f"ce_weighting: expected one of {', '.join(WEIGHTINGS)}, got {weighting!r}.")
    with full_precision(logits):
        costs = functional.binary_cross_entropy_with_logits(as_float(logits), as_float(target), reduction="none")
        w = as_float(weights).to(costs.dtype)
        if weighting == "legacy_global":
            return costs.mean() * w.mean()
        total = w.sum()
        return (costs * w).sum() / torch.where(total > 0, total, torch.ones_like(total))


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 − (2 Σ p g + 1) / (Σ p + Σ g + 1) over everything given, p = sigmoid(logits); a scalar.

    Nothing wanted and nothing given costs 0 through the smoothing 1.
    """
    with full_precision(logits):
        p, g = as_float(logits).sigmoid(), as_float(target)
        return 1 - (2 * (p * g).sum() + DICE_SMOOTHING) / (p.sum() + g.sum() + DICE_SMOOTHING)


def lesion_weights(target: Tensor, *, factor: float = 10.0, sigma_voxels: float = 1.2) -> Tensor:
    """Return 1 + `factor` · Gaussian(`sigma_voxels`) of lesion masks (B, 1, D, H, W), same shape.

    The published weights lack the 1, so that a patch without a lesion would teach nothing.
    """
    reach = max(1, round(_REACH * sigma_voxels))
    places = torch.arange(-reach, reach + 1, dtype=torch.float32, device=target.device)
    kernel = torch.exp(-0.5 * (places / sigma_voxels) ** 2)
    kernel = kernel / kernel.sum()
    blurred = target.float()
    for axis in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = len(kernel), reach
        blurred = functional.conv3d(blurred, kernel.view(shape), padding=padding)
    return 1 + factor * blurred


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over samples of 1 − cosine of (N, F) features; only the student receives gradient.

    Raises ConfigError for unequal shapes: project the student's features to the teacher's width first.
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ConfigError(
            f"feature distillation: expected features of one shape (N, F), got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}."
        )
    with full_precision(student):
        return (1 - functional.cosine_similarity(as_float(student), as_float(teacher.detach()), dim=1)).mean()

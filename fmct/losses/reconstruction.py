"""Masked voxel reconstruction: MAE (He et al., 2022) and SimMIM (Xie et al., 2022), on patches of windowed CT."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from fmct import distributed
from fmct.errors import ConfigError
from fmct.losses.precision import as_float, full_precision

Distance = Literal["l1", "l2", "smooth-l1"]


def reconstruction_loss(prediction: Tensor, target: Tensor, *, distance: Distance = "l1", beta: float = 1.0) -> Tensor:
    """Return the mean voxel error over the masked patches of all ranks, as this rank's share of it.

    prediction, target: (M, C·p³), one row a masked patch; M may differ between ranks and be zero, every rank takes
    part. The value is Σ over this rank's rows of the mean voxel error, divided by the mean M of all ranks, so that the
    mean over ranks is the mean over all masked patches (MAE's and SimMIM's denominators, which agree for whole
    patches). distance: l1, l2 (squared) or smooth-l1, quadratic below `beta`. Raises ConfigError for another distance.
    """
    if prediction.shape != target.shape:
        raise ConfigError(
            f"reconstruction needs equal shapes; got {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    with full_precision(prediction):
        error = _error(as_float(prediction), as_float(target.detach()), distance, beta)
        rows = distributed.sum_over_ranks(error.new_tensor(float(len(error)))) / distributed.world_size()
        return error.mean(-1).sum() / rows.clamp(min=1.0 / distributed.world_size())


def normalise_patches(patches: Tensor, *, channels: int, floor: float = 1e-2) -> Tensor:
    """Return (M, C·p³) patches standardised per patch and channel: (x − mean) / √(variance + floor²).

    The layout is channel-major (C slowest). `floor` is in units of the windowed values: a patch of air, whose standard
    deviation is that of rounding, stays near 0 instead of becoming unit-variance noise.
    """
    rows = as_float(patches).unflatten(-1, (channels, -1))
    centred = rows - rows.mean(-1, keepdim=True)
    return (centred / (rows.var(-1, keepdim=True, unbiased=False) + floor * floor).sqrt()).flatten(-2)


def _error(prediction: Tensor, target: Tensor, distance: Distance, beta: float) -> Tensor:
    if distance == "l1":
        return functional.l1_loss(prediction, target, reduction="none")
    if distance == "l2":
        return functional.mse_loss(prediction, target, reduction="none")
    if distance == "smooth-l1":
        return functional.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
    raise ConfigError(f"reconstruction distance {distance!r}: expected l1, l2 or smooth-l1.")

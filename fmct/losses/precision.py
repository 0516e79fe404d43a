"""The precision of losses: fp32, or fp64 where the caller already works in it, whatever autocast says outside."""

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """Return a context in which autocast is off on the device of `like`, so that matrix products keep fp32 too."""
    return torch.autocast(like.device.type, enabled=False)


def as_float(tensor: Tensor) -> Tensor:
    """Return `tensor` as fp32, or unchanged when it is fp64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

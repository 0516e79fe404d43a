"""Volumes of any size for networks that want multiples: completed with air at the far ends, and cut back."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from fmct.shapes import Triple


def padded_size(size: Sequence[int], multiple: Sequence[int], *, least: int = 1) -> Triple:
    """Return the smallest size (z, y, x) ≥ `size` that holds a whole number, at least `least`, of multiples."""
    d, h, w = (max(-(-s // m), least) * m for s, m in zip(size, multiple, strict=True))
    return d, h, w


def pad_to(x: Tensor, size: Sequence[int], value: float = 0.0) -> Tensor:
    """Return (..., D', H', W') of `size`: `x` (..., D, H, W) at the near corner, `value` at the far ends of each axis.

    Token i then covers the voxels from i · patch on, as without padding. The same size returns `x` itself.
    """
    if tuple(x.shape[-3:]) == tuple(size):
        return x
    d, h, w = (new - old for new, old in zip(size, x.shape[-3:], strict=True))
    return functional.pad(x, (0, w, 0, h, 0, d), value=value)


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the near corner of `size` voxels (z, y, x) of (..., D, H, W): the inverse of `pad_to`."""
    d, h, w = size
    return x[..., :d, :h, :w]

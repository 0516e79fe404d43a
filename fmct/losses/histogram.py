"""Histograms of a patch's voxels as a target: MaskFeat (Wei et al., 2022) with intensities in place of gradients."""

import torch
from torch import Tensor

from fmct import distributed
from fmct.losses.precision import as_float, full_precision


@torch.no_grad()
def patch_histograms(patches: Tensor, *, channels: int, bins: int) -> Tensor:
    """Return (..., C, bins) float32 histograms of (..., C·p³) patches (channel-major) of values in [0, 1].

    Each voxel is shared by the two nearest of `bins` centres from 0 to 1 in proportion to its distance, so that a
    small change of HU changes the histogram a little; values outside count to the end bins. The last axis sums to 1.
    """
    values = as_float(patches).unflatten(-1, (channels, -1)).clamp(0, 1) * (bins - 1)
    return torch.stack([(1 - (values - centre).abs()).clamp(min=0).mean(-1) for centre in range(bins)], dim=-1)


def histogram_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of (..., C, bins) logits and histograms, meaned over the C channels: (...)."""
    with full_precision(logits):
        return -(target * as_float(logits).log_softmax(-1)).sum(-1).mean(-1)


def mean_over_ranks(values: Tensor, where: Tensor) -> Tensor:
    """Return this rank's share of the mean of `values` where `where` is true, over all ranks.

    values, where: equally shaped. The mean over ranks of the shares is the mean over all true entries; a rank may have
    none, all take part.
    """
    chosen = where.to(values.dtype)
    count = distributed.sum_over_ranks(chosen.sum()) / distributed.world_size()
    return (values * chosen).sum() / count.clamp(min=1.0 / distributed.world_size())

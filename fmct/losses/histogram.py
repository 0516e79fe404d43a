"""Histograms of a patch's voxels as a target: MaskFeat (Wei et al., 2022) with intensities in place of gradients."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from fmct import distributed
from fmct.losses.precision import as_float, full_precision
from fmct.shapes import Triple


@torch.no_grad()
def patch_histograms(patches: Tensor, *, channels: int, bins: int) -> Tensor:
    """Return (..., C, bins) float32 histograms of (..., C·p³) patches (channel-major) of values in [0, 1].

    Each voxel is shared by the two nearest of `bins` centres from 0 to 1 in proportion to its distance, so that a
    small change of HU changes the histogram a little; values outside count to the end bins. The last axis sums to 1.
    """
    values = as_float(patches).unflatten(-1, (channels, -1)).clamp(0, 1) * (bins - 1)
    return torch.stack([(1 - (values - centre).abs()).clamp(min=0).mean(-1) for centre in range(bins)], dim=-1)


@torch.no_grad()
def neighbourhood_histograms(histograms: Tensor, grid: Triple, side: int) -> Tensor:
    """Return (B, N, C, bins): the mean of the histograms in a cube of `side` patches around each patch.

    histograms: (B, N, C, bins) of the patches on `grid` (z, y, x), z slowest. The cube ends where the view ends.
    """
    if side == 1:
        return histograms
    volume = histograms.flatten(2).movedim(1, -1).unflatten(-1, grid)
    inside = volume.new_ones((1, 1, *grid))
    # Padded by hand: the pooling refuses axes shorter than its cube, even where its own padding would do.
    total, share = (avg_pool3d(pad(x, (side // 2,) * 6), side, stride=1) for x in (volume, inside))
    mean = total / share
    return mean.flatten(2).movedim(-1, 1).unflatten(-1, histograms.shape[2:])


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

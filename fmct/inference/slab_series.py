"""A series as consecutive slabs through a slab network: its logit, a row per slab, and the attention on the slab grid.

How `fmct predict` reads series with a model of kind attention_pe, and where stage two's features come from.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fmct.data.slabs import tall_enough, too_short
from fmct.errors import DataError
from fmct.inference.series_readers import AttentionMap, Reading
from fmct.models.slab_network import SlabOutput
from fmct.models.slab_series import SlabSeriesNetwork
from fmct.precision import compute_dtype
from fmct.preprocess import Preprocessing
from fmct.publish.load_model import PublishedModel
from fmct.shapes import TripleF
from fmct.tiling import Grid, Scan

TABLE = "slabs"
VOXELS_PER_BATCH = {"cpu": 1 << 22, "cuda": 1 << 26}


@dataclass(frozen=True)
class SlabSeries:
    """T slabs of a series in z order, from the lowest.

    logits (T,), attention (T, gd, gh, gw), features (T, C, gh, gw): float32, on the CPU. grid: where the slabs lie.
    """

    logits: Tensor
    attention: Tensor
    features: Tensor
    grid: Grid


def slab_series(
    network: nn.Module, preprocessing: Preprocessing, scan: Scan, *, device: torch.device, precision: str = "auto"
) -> SlabSeries:
    """Return what a slab network says of every slab of a scan (of preprocessing.scan). Raises DataError when short."""
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    if not tall_enough(scan.shape, spacing.tolist(), preprocessing):
        raise DataError(f"the series' {scan.shape[0] * spacing[0]:.1f} mm are {too_short(preprocessing)}.")
    dtype, parts, grid = compute_dtype(precision, device), [], preprocessing.grid(scan)
    with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        for tiles in preprocessing.batches(scan, batch_size=_batch_size(preprocessing, device), device=device):
            output: SlabOutput = network(tiles.tensor, spacing=tiles.spacing_mm.to(device))
            parts.append([value.float().cpu() for value in output])
    logits, attention, features = (torch.cat(values) for values in zip(*parts, strict=True))
    return SlabSeries(logits[:, 0], attention, features, grid)


def read_series(model: PublishedModel, scan: Scan, *, precision: str) -> Reading:
    """Return what `model` says of a scan: see fmct.inference.series_readers.

    Stage one alone: the largest or mean logit of its slabs, as the record's pool says; stage two: the reader's. Each
    slab's probability is stage one's. The attention is that of each slab times its probability.
    """
    slabs = slab_series(model.module, model.preprocessing, scan, device=model.device, precision=precision)
    if isinstance(model.module, SlabSeriesNetwork):
        with torch.no_grad():
            logits = model.module.read(slabs.features[None].to(model.device))[0].float().cpu()
    else:
        logits = model.pooled(slabs.logits[:, None], None)
    rows = list(slab_rows(slabs, model.targets[0]))
    count = len(slabs.logits)
    return Reading(
        logits.double(), {TABLE: rows}, windows=count, looked_at=count, attention=lambda: attention_volume(slabs)
    )


def slab_rows(slabs: SlabSeries, target: str) -> Iterator[dict[str, object]]:
    """Yield a row per slab: its number from below, where it lies in RAS mm, its probability, its largest attention.

    z_low_mm, z_high_mm: RAS z of the slab's outer faces at its middle; x_mm, y_mm, z_mm: its middle.
    """
    grid = slabs.grid
    height = np.array([grid.tile[0], 0.0, 0.0])
    middles = grid.starts + (np.asarray(grid.tile) - 1) / 2
    for number, middle in enumerate(middles):
        x, y, z = _place(grid, middle)
        faces = [_place(grid, middle + side * height / 2)[2] for side in (-1, 1)]
        yield {
            "target": target,
            "slab": number,
            "z_low_mm": min(faces),
            "z_high_mm": max(faces),
            "x_mm": x,
            "y_mm": y,
            "z_mm": z,
            "probability": float(slabs.logits[number].double().sigmoid()),
            "largest_attention": float(slabs.attention[number].max()),
        }


def attention_volume(slabs: SlabSeries) -> AttentionMap:
    """Return the attention of all slabs times their probabilities on the slab grid, linear between cells in-plane."""
    grid = slabs.grid
    depth, height, width = grid.tile
    weighted = slabs.attention * slabs.logits.sigmoid()[:, None, None, None]
    along = -(-depth // weighted.shape[1])  # slices of a cell
    volume = torch.zeros(grid.shape)
    for start, cells in zip(grid.starts.tolist(), weighted, strict=True):
        plane = functional.interpolate(cells[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        slab = plane.repeat_interleave(along, dim=0)[:depth]
        inside = [_overlap(first, side, count) for first, side, count in zip(start, grid.tile, grid.shape, strict=True)]
        (z, z_of), (y, y_of), (x, x_of) = inside
        volume[z, y, x] = slab[z_of, y_of, x_of]
    return AttentionMap(volume, grid)


def _overlap(first: int, side: int, count: int) -> tuple[slice, slice]:
    """Return where a tile lies in `count` voxels, and which of its own voxels those are."""
    low, high = max(first, 0), min(first + side, count)
    return slice(low, high), slice(low - first, high - first)


def _place(grid: Grid, index: np.ndarray) -> TripleF:
    x, y, z = (grid.affine[:3, :3] @ index + grid.affine[:3, 3]).tolist()
    return x, y, z


def _batch_size(preprocessing: Preprocessing, device: torch.device) -> int:
    voxels = int(np.prod(preprocessing.input.size_voxels))
    return max(1, VOXELS_PER_BATCH.get(device.type, 1 << 22) // voxels)

"""The preview sheet: one row of pictures per draw, from the same code and the same draws as training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fmct.data.crops import read_coarse
from fmct.data.masking import check_masking, sample_masks
from fmct.data.render import render
from fmct.data.sampler import StoreConfig
from fmct.data.source import open_sources
from fmct.data.view_config import ViewsConfig, check_views
from fmct.data.views import ViewParameters, sample_parameters
from fmct.shapes import Triple, patch_grid
from fmct.windows import Window

_OVERVIEW_SIDE = 256  # voxels per axis of the level that the source scan is drawn from
_PLANES = ((0, "axial"), (1, "coronal"), (2, "sagittal"))


@dataclass(frozen=True)
class DrawnSample:
    """What one row shows. overview: (d, h, w) intensities of a coarse level; views, masks: as training sees them."""

    draw: int
    entry: Any
    overview: np.ndarray
    overview_factor: Triple
    parameters: list[ViewParameters]
    views: list[np.ndarray]
    masks: list[np.ndarray]
    intensities: np.ndarray


def collect(config: Any, draws: Sequence[int]) -> list[DrawnSample]:
    """Return what training would see at `draws`."""
    views: ViewsConfig = config.views
    check_views(views)
    check_masking(config.masking)
    stores = [StoreConfig(path=config.store)] if getattr(config, "store", "") else list(config.data.stores)
    source = open_sources(stores, seed=config.seed, allow_mixed=config.data.allow_mixed_modalities)
    count = views.global_views.count
    grid = patch_grid(views.global_views.shape, _patch(config.encoder))
    samples = []
    for draw in draws:
        store, entry = source.entry(draw)
        parameters = sample_parameters(views, entry, read_coarse(store, entry, views), seed=config.seed, draw=draw)
        masks = sample_masks(config.masking, grid, seed=config.seed, draws=[draw], views=count)[:, 0]
        crops = [torch.from_numpy(store.read(entry, p.level, p.start, p.shape)) for p in parameters]
        windows = [] if views.percentiles else views.windows
        level = next(
            (i for i, level in enumerate(entry.levels) if max(level.shape) <= _OVERVIEW_SIDE), len(entry.levels) - 1
        )
        samples.append(
            DrawnSample(
                draw=draw,
                entry=entry,
                overview=store.read_level(entry, level).astype(np.float32) * entry.scale,
                overview_factor=entry.levels[level].factor,
                parameters=parameters,
                views=[render([c], [p], windows=windows)[0].numpy() for c, p in zip(crops, parameters, strict=True)],
                masks=[upsampled(mask.view(grid).numpy(), views.global_views.shape) for mask in masks],
                intensities=np.concatenate([c.numpy().reshape(-1)[::7] for c in crops]).astype(np.float32)
                * entry.scale,
            )
        )
    return samples


def upsampled(mask: np.ndarray, size: Triple) -> np.ndarray:
    """Return a patch mask (z, y, x) repeated to `size` voxels."""
    for axis, (voxels, patches) in enumerate(zip(size, mask.shape, strict=True)):
        mask = mask.repeat(voxels // patches, axis=axis)
    return mask


def shown_windows(views: ViewsConfig) -> list[Window]:
    """Return the window of each channel, for titles."""
    if not views.percentiles:
        return list(views.windows)
    return [Window(-1, 1, f"{views.percentiles[0]:g}–{views.percentiles[1]:g} %", shift=0, scale=1)]


def _patch(encoder: Any) -> Triple:
    from fmct.shapes import triple

    return triple(encoder.patch_size, "encoder.patch_size")

"""Batches of views for pretraining: workers read and decompress crops, the main process renders them on the device.

Batch k of rank r holds the draws start + k·B·W + r·B … + B − 1 for B draws per rank and W ranks. What a draw shows
depends on (seed, draw) only, so worker count, world size and where a run was broken change nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fmct.data.crops import CropDataset, RawBatch
from fmct.data.masking import MaskingConfig, check_masking, most_masked_patches, sample_masks
from fmct.data.recycle import Recycler
from fmct.data.render import render
from fmct.data.sampler import StoreConfig
from fmct.data.source import open_sources
from fmct.data.view_config import ViewsConfig, check_views
from fmct.data.views import ViewParameters
from fmct.data.workers import batches_from_workers
from fmct.errors import ConfigError
from fmct.shapes import Triple, patch_grid


@dataclass(frozen=True)
class DataConfig:
    """Where draws come from. stores: one or several (`store=PATH` on the command line stands for one).

    workers: processes that read and decompress; 0 reads in the main process. prefetch: how many pieces of a batch, of
    at most 8 samples, each keeps ready.
    """

    stores: list[StoreConfig] = field(default_factory=list)
    allow_mixed_modalities: bool = False
    workers: int = 2
    prefetch: int = 2


@dataclass(frozen=True)
class ViewBatch:
    """The views of B draws of one rank.

    global_views (G, B, C, D, H, W) and local_views (L, B, C, d, h, w) or None: float32 window values. global_spacing
    (G, B, 3), local_spacing (L, B, 3): mm, float32. masks: (G, B, N) bool, patches hidden from the student;
    most_masked: a bound on their number, the same for every batch of a run. draws: (B,) int64 on the CPU. entries: ids.
    """

    global_views: torch.Tensor
    local_views: torch.Tensor | None
    global_spacing: torch.Tensor
    local_spacing: torch.Tensor
    masks: torch.Tensor
    most_masked: int
    draws: torch.Tensor
    entries: list[str]


def build_loader(
    stores: Sequence[StoreConfig],
    views: ViewsConfig,
    masking: MaskingConfig,
    *,
    seed: int,
    batch_size: int,
    patch_size: Triple,
    rank: int = 0,
    world_size: int = 1,
    start_draw: int = 0,
    workers: int = 0,
    prefetch: int = 2,
    device: torch.device | str = "cpu",
    allow_mixed_modalities: bool = False,
) -> "Loader":
    """Return an endless iterable of ViewBatch.

    batch_size: draws per rank. patch_size: of the encoder, for the masks' grid. Raises ConfigError or DataError for
    views, masks, stores, splits or filters that cannot be used.
    """
    check_views(views)
    check_masking(masking)
    if batch_size < 1 or workers < 0:
        raise ConfigError(f"batch_size must be ≥ 1 and workers ≥ 0, got {batch_size} and {workers}.")
    source = open_sources(stores, seed=seed, allow_mixed=allow_mixed_modalities)
    dataset = CropDataset(source, views, seed=seed)
    return Loader(
        dataset,
        views,
        masking,
        seed=seed,
        batch_size=batch_size,
        grid=patch_grid(views.global_views.shape, patch_size),
        first=start_draw + rank * batch_size,
        stride=batch_size * world_size,
        workers=workers,
        prefetch=prefetch,
        device=torch.device(device),
    )


class Loader:
    """Endless batches of views; each `iter` begins anew at the first draw. `length` is the number of series."""

    def __init__(
        self,
        dataset: CropDataset,
        views: ViewsConfig,
        masking: MaskingConfig,
        *,
        seed: int,
        batch_size: int,
        grid: Triple,
        first: int,
        stride: int,
        workers: int,
        prefetch: int,
        device: torch.device,
    ) -> None:
        self.length = dataset.source.length
        self._dataset, self._views, self._masking, self._seed = dataset, views, masking, seed
        self._batch_size, self._grid, self._first, self._stride = batch_size, grid, first, stride
        self._workers, self._prefetch, self._device = workers, prefetch, device
        patches = grid[0] * grid[1] * grid[2]
        self.most_masked = most_masked_patches(masking, patches, views=views.global_views.count, draws=batch_size)
        self._recycler = Recycler()

    def __iter__(self) -> Iterator[ViewBatch]:
        """Yield batches without end; worker processes live until the iterator is closed."""
        wanted = DrawBatches(self._first, self._stride, self._batch_size)
        for pieces in batches_from_workers(
            self._dataset, wanted, workers=self._workers, prefetch=self._prefetch, device=self._device
        ):
            yield self._rendered(pieces)

    def _rendered(self, pieces: Sequence[RawBatch]) -> ViewBatch:
        """Return the views of a batch of crops, rendered on the device."""
        crops = [crop for piece in pieces for crop in self._crops(piece)]
        drawn = [p for piece in pieces for p in piece.parameters]
        draws = [draw for piece in pieces for draw in piece.draws]
        count = self._views.global_views.count
        masks = sample_masks(self._masking, self._grid, seed=self._seed, draws=draws, views=count)
        views = {}
        for kind in ("global", "local"):
            # From draw by draw to view by view: (B, V) → (V, B).
            chosen = [i for i, p in enumerate(drawn) if p.kind == kind]
            per_draw = len(chosen) // len(draws)
            chosen = [chosen[d * per_draw + v] for v in range(per_draw) for d in range(len(draws))]
            views[kind] = self._render([crops[i] for i in chosen], [drawn[i] for i in chosen], per_draw)
        return ViewBatch(
            global_views=views["global"][0],
            local_views=views["local"][0] if views["local"][0].numel() else None,
            global_spacing=views["global"][1],
            local_spacing=views["local"][1],
            masks=masks.to(self._device, non_blocking=True),
            most_masked=self.most_masked,
            draws=torch.tensor(draws, dtype=torch.int64),
            entries=[entry for piece in pieces for entry in piece.entries],
        )

    def _crops(self, piece: RawBatch) -> list[torch.Tensor]:
        """Return the crops of a piece, int16, on the device."""
        flat = piece.voxels.to(self._device, non_blocking=True)
        sizes = [p.shape[0] * p.shape[1] * p.shape[2] for p in piece.parameters]
        return [part.view(p.shape) for part, p in zip(flat.split(sizes), piece.parameters, strict=True)]

    def _render(
        self, crops: Sequence[torch.Tensor], parameters: Sequence[ViewParameters], per_draw: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not crops:
            return torch.empty(0, device=self._device), torch.empty((0, self._batch_size, 3), device=self._device)
        shape = (len(crops), self._views.channels, *parameters[0].size)
        out = self._recycler.take(shape) if self._device.type == "cpu" else None
        windows = [] if self._views.percentiles else self._views.windows
        rendered = render(crops, parameters, windows=windows, out=out)
        spacing = torch.tensor([p.spacing_mm for p in parameters], dtype=torch.float32)
        spacing = spacing.view(per_draw, -1, 3).to(self._device, non_blocking=True)
        return rendered.view(per_draw, -1, *rendered.shape[1:]), spacing


@dataclass(frozen=True)
class DrawBatches:
    """The endless batches of draws of one rank: first + k · stride … + batch_size − 1."""

    first: int
    stride: int
    batch_size: int

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of draws without end."""
        start = self.first
        while True:
            yield list(range(start, start + self.batch_size))
            start += self.stride


def loader_settings(data: DataConfig) -> Mapping[str, Any]:
    """Return the keyword arguments of `build_loader` that a DataConfig holds, its stores apart."""
    return {
        "workers": data.workers,
        "prefetch": data.prefetch,
        "allow_mixed_modalities": data.allow_mixed_modalities,
    }

"""Batches of labelled windows: workers read and decompress crops, the main process renders them on the device.

Batch k of rank r holds the draws start + k·B·W + r·B … + B − 1 for B draws per rank and W ranks. What a draw shows
depends on (seed, draw) only, so worker count, world size and where a run was broken change nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fmct.data.cohort import Cohort, CohortConfig, read_cohort
from fmct.data.label_sampler import EverySample, LabelSampler, pools_of
from fmct.data.pretrain import DrawBatches
from fmct.data.sample import Sample
from fmct.data.series import series_batches
from fmct.data.window_config import WindowsConfig, check_windows, paired_windows, window_grid
from fmct.data.window_labels import WindowLabels
from fmct.data.window_reader import RawWindows, Window, WindowReader
from fmct.data.window_render import lesion_share, render_scan, validity
from fmct.data.workers import batches_from_workers
from fmct.errors import ConfigError
from fmct.preprocess import Preprocessing
from fmct.windows import Window as IntensityWindow

__all__ = [
    "Cohort",
    "CohortConfig",
    "LabelledBatch",
    "LabelledLoader",
    "WindowsConfig",
    "build_labelled_loader",
    "read_cohort",
    "series_batches",
    "windows_of",
]


@dataclass(frozen=True)
class LabelledBatch:
    """B labelled windows of one rank.

    volumes (B, C, D, H, W) float32 window values; spacing (B, 3) mm. labels (B, T): of the windows, 0, 1 or NaN
    (unknown); patient_labels (B, T): of their series. mask (B, D, H, W): the lesion's share of each voxel, 0 where
    unknown; valid (B, D, H, W): 1 inside the scan, and inside the paired one where there is one; has_mask (B,) bool:
    the mask is known, be it empty. paired (B, C2, D, H, W), zeros where has_pair (B,) is false; None when no series of
    the cohort has a pair. pair_weight (B,), 0 without pair. bags (B,) int64: the patient's number in
    `Cohort.patients(split)`. draws (B,) int64 on the CPU. entries: series ids. kinds: what each was drawn for.
    """

    volumes: torch.Tensor
    spacing: torch.Tensor
    labels: torch.Tensor
    patient_labels: torch.Tensor
    mask: torch.Tensor
    valid: torch.Tensor
    has_mask: torch.Tensor
    paired: torch.Tensor | None
    has_pair: torch.Tensor
    pair_weight: torch.Tensor
    bags: torch.Tensor
    draws: torch.Tensor
    entries: list[str]
    kinds: list[str]

    def __len__(self) -> int:
        return len(self.entries)


def build_labelled_loader(
    cohort: Cohort,
    split: str,
    preprocessing: Preprocessing,
    config: WindowsConfig,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_draw: int = 0,
    workers: int = 0,
    prefetch: int = 2,
    device: torch.device | str = "cpu",
) -> "LabelledLoader":
    """Return an endless iterable of LabelledBatch over a split, preprocessed as the encoder's folder says.

    batch_size: draws per rank. Raises ConfigError or DataError for settings or data that cannot be drawn from, among
    them a scan of another modality than the encoder's.
    """
    samples = cohort.of(split)
    check_windows(config)
    if batch_size < 1 or workers < 0:
        raise ConfigError(f"batch_size must be ≥ 1 and workers ≥ 0, got {batch_size} and {workers}.")
    if batch_size % config.per_series or start_draw % config.per_series:
        raise ConfigError(
            f"windows.per_series={config.per_series}: a rank's batch of {batch_size} windows does not divide into "
            "whole series. Take a batch_size that is a multiple of it on every rank."
        )
    pools = pools_of(samples, config, cohort.targets, masks=cohort.uses_masks)
    plan = LabelSampler(pools, seed=seed, per_series=config.per_series)
    reader = _reader(cohort, samples, plan, config, preprocessing, seed=seed)
    draws = DrawBatches(start_draw + rank * batch_size, batch_size * world_size, batch_size)
    return _loader(cohort, split, reader, draws, config, preprocessing, workers, prefetch, torch.device(device))


def windows_of(
    cohort: Cohort,
    split: str,
    preprocessing: Preprocessing,
    config: WindowsConfig,
    *,
    count: int,
    seed: int,
    batch_size: int,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> "LabelledLoader":
    """Return `count` windows of every series of a split, in order, without augmentation: to validate on, once.

    The windows are uniform: set `body_fraction` to 0 for places that look at no voxel. Draw i·count + j is window j of
    the split's series i; its place depends on (seed, draw) only.
    """
    if count < 1 or batch_size < 1:
        raise ConfigError(f"count and batch_size must be ≥ 1, got {count} and {batch_size}.")
    samples, config = cohort.of(split), config.without_augmentation()
    check_windows(config)
    reader = _reader(cohort, samples, EverySample(count), config, preprocessing, seed=seed)
    total = len(samples) * count
    draws = [list(range(first, min(first + batch_size, total))) for first in range(0, total, batch_size)]
    return _loader(cohort, split, reader, draws, config, preprocessing, workers, 2, torch.device(device))


class LabelledLoader:
    """Batches of labelled windows; each `iter` begins anew. `length` is the number of series."""

    def __init__(
        self,
        reader: WindowReader,
        draws: "DrawBatches | list[list[int]]",
        labels: WindowLabels,
        windows: Sequence[IntensityWindow],
        paired: Sequence[IntensityWindow],
        *,
        workers: int,
        prefetch: int,
        device: torch.device,
    ) -> None:
        self.length = len(reader.samples)
        self._reader, self._draws, self._labels = reader, draws, labels
        self._windows, self._paired = list(windows), list(paired)
        self._workers, self._prefetch, self._device = workers, prefetch, device

    def __iter__(self) -> Iterator[LabelledBatch]:
        """Yield batches; worker processes live until the iterator is closed."""
        for pieces in batches_from_workers(
            self._reader, self._draws, workers=self._workers, prefetch=self._prefetch, device=self._device
        ):
            yield self._rendered(pieces)

    def _rendered(self, pieces: Sequence[RawWindows]) -> LabelledBatch:
        windows = [window for piece in pieces for window in piece.windows]
        crops = [crops for piece in pieces for crops in self._crops(piece)]
        size, count, device = windows[0].place.size, len(windows), self._device
        channels = len(self._windows) or 1
        volumes = torch.empty((count, channels, *size), device=device)
        paired = torch.zeros((count, len(self._paired), *size), device=device) if self._paired else None
        mask, valid = (torch.zeros((count, *size), device=device) for _ in range(2))
        for number, (window, parts) in enumerate(zip(windows, crops, strict=True)):
            left = list(parts)
            shown = self._windows or [window.curve or _percentile_window(window)]
            volumes[number] = render_scan(left.pop(0), window.scan, size, window.look, shown)
            valid[number] = validity(window.scan, size, device)
            if window.lesion:
                mask[number] = lesion_share(left.pop(0), window.scan, size)
            if window.paired is not None and paired is not None:
                paired[number] = render_scan(left.pop(0), window.paired, size, window.paired_look, self._paired)
                valid[number] *= validity(window.paired, size, device)
        facts = self._labels.of(windows, mask, valid)
        return LabelledBatch(volumes=volumes, mask=mask, valid=valid, paired=paired, **facts)

    def _crops(self, piece: RawWindows) -> Iterator[list[torch.Tensor]]:
        """Yield the crops of each window of a piece, int16, on the device."""
        flat, start = piece.voxels.to(self._device, non_blocking=True), 0
        for window in piece.windows:
            parts = []
            for plan in window.crops:
                stop = start + math.prod(plan.shape)
                parts.append(flat[start:stop].view(plan.shape))
                start = stop
            yield parts


def _reader(
    cohort: Cohort,
    samples: Sequence[Sample],
    plan: LabelSampler | EverySample,
    config: WindowsConfig,
    preprocessing: Preprocessing,
    *,
    seed: int,
) -> WindowReader:
    for sample in samples:
        preprocessing.check_modality(sample.entry.modality, f"series {sample.entry.id}")
    if preprocessing.normalisation.kind != "none" and config.intensity.gamma.probability:
        raise ConfigError(
            "windows.intensity.gamma acts between the ends of a window, and normalised values have none: leave it out."
        )
    return WindowReader(cohort, samples, plan, config, window_grid(config, preprocessing), preprocessing, seed=seed)


def _loader(
    cohort: Cohort,
    split: str,
    reader: WindowReader,
    draws: DrawBatches | list[list[int]],
    config: WindowsConfig,
    preprocessing: Preprocessing,
    workers: int,
    prefetch: int,
    device: torch.device,
) -> LabelledLoader:
    pairs = [sample.pair.modality for sample in cohort.samples if sample.pair is not None]
    return LabelledLoader(
        reader,
        draws,
        WindowLabels(cohort, split, config, device=device),
        preprocessing.windows,
        paired_windows(config, preprocessing, pairs),
        workers=workers,
        prefetch=prefetch,
        device=device,
    )


def _percentile_window(window: Window) -> IntensityWindow:
    """Return the window that maps the series' own percentiles to −1 and 1, as Preprocessing does."""
    assert window.values is not None, "without windows the encoder scales by percentiles"
    low, high = window.values
    high = max(high, low + 1e-3)
    return IntensityWindow(low, high, shift=(low + high) / 2, scale=(high - low) / 2)

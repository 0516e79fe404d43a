"""What a model says of a whole series: overlapping windows through MONAI's inferer, air left out, logits averaged.

Windows are cut as training cut them, each from a pyramid level, so the series is never resampled as a whole. A window
that is air counts with weight zero: where only such windows lie the probability is zero, and where others reach the
average is theirs alone.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fmct.precision import compute_dtype, rounded_once
from fmct.preprocess import Preprocessing
from fmct.publish.load_model import PublishedModel
from fmct.publish.window_output import WindowOutput
from fmct.tiling import Grid, Scan, cut_tile, foreground_fractions, plan_tiles
from fmct.windows import apply_windows

OVERLAP = 0.5
TOKENS_PER_BATCH = 2048
VOXELS_PER_BATCH = {"cpu": 1 << 22, "cuda": 1 << 24}  # a decoder at full resolution holds some hundred bytes a voxel
STITCH_ON_CPU_ABOVE = 1 << 28  # voxels of a series whose maps then do not stay in a GPU's memory
_STRIDE_TOKEN = 16**3  # voxels a token stands for where the network has none


@dataclass(frozen=True)
class SeriesOutput:
    """What a model says of one series with T targets.

    logits: (T,) of the series, None for a network that only segments. probability: (T, d, h, w) float32 on `grid`, 0
    where no window was looked at; attention: (d, h, w); None where the network gives none. windows, looked_at: how many
    there were, and how many were not air.
    """

    logits: torch.Tensor | None
    probability: torch.Tensor | None
    attention: torch.Tensor | None
    grid: Grid
    windows: int
    looked_at: int


def predict_series(
    model: PublishedModel,
    scan: Scan,
    *,
    overlap: float = OVERLAP,
    maps: bool = True,
    attention: bool = False,
    precision: str = "auto",
) -> SeriesOutput:
    """Return what `model` says of a scan (of model.preprocessing.scan).

    A network that segments, on tiles, slides with Gaussian weights and `overlap` as share of a window's side; its
    classification comes from the same windows. Any other series goes through the tiles of preprocess.json. maps:
    whether the probability of voxels is wanted; attention: whether the attention map is. precision: auto, bf16, fp32.
    """
    with _computing(model, precision):
        if model.segments and model.preprocessing.input.mode == "tiles":
            return _slide(model, scan, overlap=overlap, attention=attention)
        return _by_tiles(model, scan, maps=maps and model.segments, attention=attention)


def sliding_grid(preprocessing: Preprocessing, scan: Scan) -> Grid:
    """Return the grid that windows slide over; its own `starts` play no part."""
    spec = preprocessing.input
    return plan_tiles(scan.shape, scan.affine, size=spec.size_voxels, spacing_mm=spec.spacing_mm, overlap=0.0)


@contextmanager
def _computing(model: PublishedModel, precision: str) -> Iterator[None]:
    kind, dtype = model.device.type, compute_dtype(precision, model.device)
    autocast = torch.autocast(kind, dtype=dtype, enabled=dtype != torch.float32)
    with torch.no_grad(), autocast, rounded_once(model.module, dtype):
        yield


class _Windows:
    """Cuts windows, leaves out air, runs the model, and keeps what belongs to the series as a whole."""

    def __init__(self, model: PublishedModel, scan: Scan, grid: Grid) -> None:
        self.model, self.scan, self.grid = model, scan, grid
        self.windows = model.preprocessing.windows_of(scan)
        self.spacing = torch.tensor([grid.spacing_mm], dtype=torch.float32)
        self.logits: list[torch.Tensor] = []
        self.features: list[torch.Tensor] = []
        self.looked_at = 0
        self.attends = False

    def run(self, starts: np.ndarray) -> WindowOutput:
        """Return the output of the windows that begin at `starts` (M, 3) on the grid."""
        values = torch.stack([cut_tile(self.scan, self.grid, start, device=self.model.device) for start in starts])
        output = self.model(apply_windows(values, self.windows), spacing=self.spacing.expand(len(starts), 3))
        self.looked_at += len(starts)
        if output.classification is not None:
            self.logits.append(output.classification.float())
        if output.features is not None and self.model.record.pool == "bag":
            self.features.append(output.features.float())
        return output

    def series_logits(self) -> torch.Tensor | None:
        """Return the (T,) logits of the series, None where the network gives none."""
        if not self.logits:
            return None
        features = torch.cat(self.features) if self.features else None
        return self.model.pooled(torch.cat(self.logits), features).float().cpu()


def _slide(model: PublishedModel, scan: Scan, *, overlap: float, attention: bool) -> SeriesOutput:
    from monai.inferers.inferer import SlidingWindowInferer

    spec, grid = model.preprocessing.input, sliding_grid(model.preprocessing, scan)
    size, targets = spec.size_voxels, len(model.targets)
    windows = _Windows(model, scan, grid)
    padding = [max(side - count, 0) // 2 for side, count in zip(size, grid.shape, strict=True)]
    shares: dict[tuple[int, ...], float] = {}

    def predictor(blank: torch.Tensor, coordinates: Sequence[Any], *, least: float) -> torch.Tensor:
        """Return (b, T + 1 or 2, …): logits, attention where asked for, and whether the window was looked at."""
        starts = np.array([[part.start for part in where[2:]] for where in coordinates]) - padding
        found = foreground_fractions(scan, dataclasses.replace(grid, starts=starts))
        shares.update(zip(map(tuple, starts.tolist()), found.tolist(), strict=True))
        kept = np.flatnonzero(found >= least)
        out = torch.zeros((len(blank), targets + attention + 1, *size), device=model.device)
        if len(kept):
            output = windows.run(starts[kept])
            assert output.segmentation is not None
            out[kept, :targets] = output.segmentation.float()
            if attention and output.attention is not None:
                windows.attends = True
                out[kept, targets] = _enlarged(output.attention, size)
            out[kept, -1] = 1.0
        return out

    inferer = SlidingWindowInferer(
        roi_size=size,
        sw_batch_size=batch_size(model),
        overlap=overlap,
        mode="gaussian",
        sw_device=model.device,
        device=torch.device("cpu") if np.prod(grid.shape) > STITCH_ON_CPU_ABOVE else model.device,
        with_coord=True,
    )
    # The windows are cut from the scan; the inferer is given their places only.
    blank = torch.zeros((1, 1, 1, 1, 1), device=model.device).expand(1, 1, *grid.shape)
    averaged = inferer(blank, predictor, least=spec.skip_air)
    if not windows.looked_at:  # the window with most foreground is never left out
        averaged = inferer(blank, predictor, least=max(shares.values()))
    assert isinstance(averaged, torch.Tensor)
    maps, seen = averaged[0, :-1], averaged[0, -1]
    reached = seen > 1e-6
    maps = maps / seen.clamp_min(1e-6)
    return SeriesOutput(
        logits=windows.series_logits(),
        probability=torch.where(reached, maps[:targets].sigmoid(), 0.0),
        attention=torch.where(reached, maps[targets], 0.0) if windows.attends else None,
        grid=grid,
        windows=len(shares),
        looked_at=windows.looked_at,
    )


def _by_tiles(model: PublishedModel, scan: Scan, *, maps: bool, attention: bool) -> SeriesOutput:
    """Return the output of the tiles that preprocess.json describes; maps only where the series is one tile."""
    preprocessing = model.preprocessing
    logits, features, shares, parts, grid, count = [], [], [], [], None, 0
    for tiles in preprocessing.batches(scan, batch_size=batch_size(model), device=model.device):
        output = model(tiles.tensor, spacing=tiles.spacing_mm)
        grid, count = tiles.grid, count + len(tiles.tensor)
        if output.classification is not None:
            logits.append(output.classification.float())
            shares.append(tiles.foreground)
        if output.features is not None and model.record.pool == "bag":
            features.append(output.features.float())
        if maps or attention:
            parts.append(output)
    assert grid is not None
    one = parts[0] if len(parts) == 1 and preprocessing.input.mode != "tiles" else None
    pooled = None
    if logits:
        pooled = model.pooled(torch.cat(logits), torch.cat(features) if features else None, torch.cat(shares))
    segmentation = one.segmentation if one is not None and maps else None
    weights = one.attention if one is not None and attention else None
    return SeriesOutput(
        logits=pooled.float().cpu() if pooled is not None else None,
        probability=_inside(segmentation[0].float().sigmoid(), grid) if segmentation is not None else None,
        attention=_inside(_enlarged(weights.float(), grid.tile), grid)[0] if weights is not None else None,
        grid=grid,
        windows=len(grid.starts),
        looked_at=count,
    )


def batch_size(model: PublishedModel) -> int:
    """Return how many windows are run at once: about TOKENS_PER_BATCH tokens, and fewer voxels than a decoder minds."""
    size = model.preprocessing.input.size_voxels
    grid = model.token_grid(size)
    tokens = np.prod(grid) if grid is not None else np.prod(size) // _STRIDE_TOKEN
    by_voxels = VOXELS_PER_BATCH.get(model.device.type, VOXELS_PER_BATCH["cpu"]) // int(np.prod(size))
    return max(1, min(TOKENS_PER_BATCH // max(1, int(tokens)), by_voxels))


def _enlarged(attention: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return (B, gd, gh, gw) token weights as (B, D, H, W), each token's voxels alike."""
    return torch.nn.functional.interpolate(attention[:, None].float(), size=tuple(size), mode="nearest")[:, 0]


def _inside(maps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return (K, d, h, w) on the grid of maps over its only tile, which may reach beyond it."""
    z, y, x = (slice(-start, -start + count) for start, count in zip(grid.starts[0].tolist(), grid.shape, strict=True))
    return maps[:, z, y, x]

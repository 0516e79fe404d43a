"""What a loader worker does: sample the views of a draw, read their crops, and hand them on as one flat tensor."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fmct.data.foreground import Coarse, coarse_level, find_body
from fmct.data.source import Source
from fmct.data.view_config import ViewsConfig
from fmct.data.views import ViewParameters, sample_parameters
from fmct.errors import DataError, FmctError
from fmct.store import Store

_COARSE_BYTES = 64 << 20  # sums of coarse levels kept per worker: about 60 scans of 64³
_PERCENTILE_SIDE = 128  # voxels per axis of the level that a scan's percentiles are taken from


@dataclass
class RawBatch:
    """The crops of a batch, draw by draw and view by view: one flat int16 tensor and the parameters that cut it up."""

    draws: list[int]
    entries: list[str]
    voxels: torch.Tensor
    parameters: list[ViewParameters]

    def pin_memory(self) -> "RawBatch":
        """Return the batch in page-locked memory, from which copies to a GPU do not wait."""
        return RawBatch(self.draws, self.entries, self.voxels.pin_memory(), self.parameters)


class CropDataset:
    """Reads batches of draws. Picklable and cheap to copy into a process: it holds paths and ids, no voxels."""

    def __init__(
        self,
        source: Source,
        views: ViewsConfig,
        *,
        seed: int,
    ) -> None:
        self.source = source
        self._views, self._seed = views, seed
        self._coarse: OrderedDict[tuple[str, str], Coarse] = OrderedDict()

    def __getitems__(self, draws: list[int]) -> RawBatch | FmctError:
        """Return the batch of these draws, or the mistake that forbids it (the main process raises it)."""
        try:
            return self.read(draws)
        except FmctError as error:
            return error

    def read(self, draws: Sequence[int]) -> RawBatch:
        """Return the crops of these draws. Raises DataError naming the draw, entry and shard that cannot be read."""
        parameters: list[ViewParameters] = []
        parts: list[np.ndarray] = []
        entries: list[str] = []
        for draw in draws:
            store, entry = self.source.entry(draw)
            entries.append(entry.id)
            try:
                views = sample_parameters(self._views, entry, self.coarse(store, entry), seed=self._seed, draw=draw)
                parts += [store.read(entry, view.level, view.start, view.shape).reshape(-1) for view in views]
            except (FmctError, OSError, RuntimeError, ValueError, KeyError) as error:
                raise DataError(
                    f"draw {draw}: entry {entry.id} in shard {entry.shard} of {store.path} cannot be read ({error}). "
                    "A bad scan is never replaced: restore the shard, or leave the entry out with "
                    f"filter: [id!={entry.id}] and start a new run."
                ) from error
            parameters += views
        return RawBatch(list(draws), entries, torch.from_numpy(np.concatenate(parts)), parameters)

    def coarse(self, store: Store, entry: Any) -> Coarse:
        """Return where the body is in an entry; recent ones are kept."""
        key = (str(store.path), entry.id)
        if key in self._coarse:
            self._coarse.move_to_end(key)
            return self._coarse[key]
        self._coarse[key] = coarse = read_coarse(store, entry, self._views)
        while len(self._coarse) > 1 and sum(kept.sums.nbytes for kept in self._coarse.values()) > _COARSE_BYTES:
            self._coarse.popitem(last=False)
        return coarse


def read_coarse(store: Any, entry: Any, views: ViewsConfig) -> Coarse:
    """Return where the body is in an entry, and its percentiles where the views ask for them."""
    shapes = [level.shape for level in entry.levels]
    level = coarse_level(shapes)
    values = None
    if views.percentiles:
        fine = store.read_level(entry, coarse_level(shapes, _PERCENTILE_SIDE)).astype(np.float32) * entry.scale
        low, high = np.percentile(fine, views.percentiles)
        values = (float(low), float(high))
    voxels = store.read_level(entry, level).astype(np.float32) * entry.scale
    return find_body(voxels, entry.levels[level].factor, entry.shape, above=views.body_above, values=values)

"""What a loader worker does for labelled windows: place them, read their crops and masks, hand on one flat tensor."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from fmct import randomness
from fmct.data.appearance import Appearance, sample_appearance
from fmct.data.cohort import Cohort
from fmct.data.foreground import Coarse, coarse_level, find_body
from fmct.data.label_sampler import DrawPlan
from fmct.data.mask_bank import LesionMask
from fmct.data.sample import Sample
from fmct.data.window_config import IntensityConfig, WindowGrid, WindowsConfig
from fmct.data.window_place import CropPlan, Place, crop_plan, sample_place
from fmct.errors import DataError, FmctError
from fmct.preprocess import Preprocessing
from fmct.store.manifest import Entry
from fmct.windows import Curve

_BODY_BYTES = 64 << 20
_PERCENTILE_SIDE = 128  # voxels per axis of the level that a series' percentiles are taken from: the encoder's way


@dataclass(frozen=True)
class Window:
    """One window: which sample (its number in the split) and what to cut and render. lesion: a mask crop comes along.

    values: the series' percentiles where the encoder scales by them, curve: what normalises it, where it does; else
    None.
    """

    draw: int
    sample: int
    kind: str
    entry: str
    place: Place
    scan: CropPlan
    look: Appearance
    lesion: bool
    paired: CropPlan | None
    paired_look: Appearance
    values: tuple[float, float] | None
    curve: Curve | None = None

    @property
    def crops(self) -> list[CropPlan]:
        """The crops in the order in which they lie in the flat tensor: scan, mask, paired scan."""
        return [self.scan, *([self.scan] if self.lesion else []), *([self.paired] if self.paired else [])]


@dataclass
class RawWindows:
    """Windows and their crops as one flat int16 tensor."""

    windows: list[Window]
    voxels: torch.Tensor

    def pin_memory(self) -> "RawWindows":
        """Return the batch in page-locked memory, from which copies to a GPU do not wait."""
        return RawWindows(self.windows, self.voxels.pin_memory())


class Places(Protocol):
    """Says where a window lies where it is not drawn about the body. Picklable."""

    def __call__(self, entry: Entry, *, kind: str, mask: LesionMask | None, random: np.random.Generator) -> Place:
        """Return the place of one window; `random` is keyed by the draw."""
        ...


class WindowReader:
    """Reads batches of draws of one split. Picklable: it holds paths and manifest entries, no voxels."""

    def __init__(
        self,
        cohort: Cohort,
        samples: Sequence[Sample],
        plan: DrawPlan,
        config: WindowsConfig,
        grid: WindowGrid,
        preprocessing: Preprocessing,
        *,
        seed: int,
        places: Places | None = None,
    ) -> None:
        """`places`: where windows lie, None for windows of `grid` drawn about the body."""
        self._places = places
        self.samples = list(samples)
        self._store, self._masks, self._plan = cohort.store, cohort.masks, plan
        self._config, self._grid, self._preprocessing, self._seed = config, grid, preprocessing, seed
        self._bodies: OrderedDict[str, Coarse] = OrderedDict()
        self._curves: dict[str, Curve | None] = {}

    def __getitems__(self, draws: list[int]) -> RawWindows | FmctError:
        """Return the windows of these draws, or the mistake that forbids it (the main process raises it)."""
        try:
            return self.read(draws)
        except FmctError as error:
            return error

    def read(self, draws: Sequence[int]) -> RawWindows:
        """Return the windows of these draws. Raises DataError naming the draw and series that cannot be read."""
        windows, parts = [], []
        for draw in draws:
            number, kind = self._plan(draw)
            sample = self.samples[number]
            try:
                window = self._place(draw, number, kind)
                windows.append(window)
                parts += [crop.reshape(-1) for crop in self._cut(sample, window)]
            except (FmctError, OSError, RuntimeError, ValueError, KeyError) as error:
                raise DataError(
                    f"draw {draw}: series {sample.entry.id} of patient {sample.patient} cannot be read ({error}). "
                    "A bad scan is never replaced: restore it, or leave the series out with "
                    f"filter: [id!={sample.entry.id}] and start a new run."
                ) from error
        return RawWindows(windows, torch.from_numpy(np.concatenate(parts)))

    def _place(self, draw: int, number: int, kind: str) -> Window:
        sample = self.samples[number]
        entry = sample.entry
        mask = self._masks.mask(entry, sample.mask) if sample.mask is not None else None
        place, values = self._lies(entry, kind, mask, randomness.generator(self._seed, "window", draw))
        scan = crop_plan(place, entry, entry)
        return Window(
            draw=draw,
            sample=number,
            kind=kind,
            entry=entry.id,
            place=place,
            scan=scan,
            look=self._look(self._config.intensity, draw, "scan"),
            lesion=mask is not None and _touches(mask, scan, entry),
            paired=crop_plan(place, entry, sample.pair) if sample.pair is not None else None,
            paired_look=self._look(self._config.paired_intensity, draw, "paired"),
            values=values,
            curve=self._curve(entry),
        )

    def _lies(
        self, entry: Entry, kind: str, mask: LesionMask | None, random: np.random.Generator
    ) -> tuple[Place, tuple[float, float] | None]:
        """Return a window's place, and the series' percentiles where the encoder scales by them."""
        if self._places is not None:
            return self._places(entry, kind=kind, mask=mask, random=random), None
        body = self._body(entry)
        place = sample_place(
            entry,
            self._grid,
            self._config,
            kind=kind,
            body=body,
            mask=mask,
            orientation=self._preprocessing.orientation,
            random=random,
        )
        return place, body.values

    def _cut(self, sample: Sample, window: Window) -> list[np.ndarray]:
        plan = window.scan
        crops = [self._store.read(sample.entry, plan.level, plan.start, plan.shape)]
        if window.lesion:
            assert sample.mask is not None
            crops.append(self._masks.read(sample.entry, sample.mask, plan.level, plan.start, plan.shape))
        if window.paired is not None:
            assert sample.pair is not None
            crops.append(self._store.read(sample.pair, window.paired.level, window.paired.start, window.paired.shape))
        return crops

    def _look(self, config: IntensityConfig, draw: int, which: str) -> Appearance:
        random = randomness.generator(self._seed, "look", which, draw)
        noise_key = randomness.word(self._seed, "noise", which, draw)
        return sample_appearance(config.appearance, random, noise_key=noise_key)

    def _curve(self, entry: Entry) -> Curve | None:
        """Return what normalises a series, fitted once; None where windows or percentiles make its channels."""
        if entry.id not in self._curves:
            shapes = [level.shape for level in entry.levels]
            self._curves[entry.id] = self._preprocessing.curve_of(
                lambda level: self._store.read_level(entry, level), shapes, scale=entry.scale, facts=entry.facts
            )
        return self._curves[entry.id]

    def _body(self, entry: Entry) -> Coarse:
        """Return where the body is in a series; recent ones are kept."""
        if entry.id not in self._bodies:
            shapes = [level.shape for level in entry.levels]
            level, values = coarse_level(shapes), None
            if self._preprocessing.percentiles is not None:
                fine = self._store.read_level(entry, coarse_level(shapes, _PERCENTILE_SIDE)).astype(np.float32)
                low, high = np.percentile(fine * np.float32(entry.scale), self._preprocessing.percentiles)
                values = (float(low), float(high))
            voxels = self._store.read_level(entry, level).astype(np.float32) * entry.scale
            above = self._config.body_above if entry.modality == "CT" else None
            self._bodies[entry.id] = find_body(
                voxels, entry.levels[level].factor, entry.shape, above=above, values=values
            )
            while len(self._bodies) > 1 and sum(kept.sums.nbytes for kept in self._bodies.values()) > _BODY_BYTES:
                self._bodies.popitem(last=False)
        self._bodies.move_to_end(entry.id)
        return self._bodies[entry.id]


def _touches(mask: LesionMask, plan: CropPlan, entry: Entry) -> bool:
    """Return whether a lesion's box meets a crop."""
    factor = np.asarray(entry.levels[plan.level].factor)
    low, high = np.asarray(plan.start) * factor, (np.asarray(plan.start) + plan.shape) * factor
    return bool((np.asarray(mask.start) < high).all() and (np.asarray(mask.start) + mask.box.shape > low).all())

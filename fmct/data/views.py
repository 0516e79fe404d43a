"""Sample the parameters of a draw's views: pure functions of (seed, draw, view), the scan's geometry and its body."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fmct import randomness
from fmct.data.appearance import Appearance, sample_appearance
from fmct.data.foreground import Coarse
from fmct.data.view_config import PLANES, AppearanceConfig, Chance, ViewConfig, ViewsConfig, check_views
from fmct.pyramid import choose_level, level_index
from fmct.shapes import Triple, TripleF
from fmct.volume import AIR_HU

__all__ = [
    "AppearanceConfig",
    "Chance",
    "ViewConfig",
    "ViewParameters",
    "ViewsConfig",
    "check_views",
    "sample_parameters",
    "view_affine",
]


class LevelLike(Protocol):
    """What is read of a pyramid level."""

    @property
    def factor(self) -> Triple:
        """Level-0 voxels per voxel."""
        ...

    @property
    def shape(self) -> Triple:
        """The number of voxels."""
        ...


class EntryLike(Protocol):
    """What is read of a store's entry."""

    @property
    def id(self) -> str:
        """Its pseudonym."""
        ...

    @property
    def modality(self) -> str:
        """CT, PT or MR."""
        ...

    @property
    def shape(self) -> Triple:
        """The number of voxels."""
        ...

    @property
    def spacing_mm(self) -> TripleF:
        """Of level 0."""
        ...

    @property
    def value_range(self) -> Sequence[float]:
        """Smallest and largest intensity."""
        ...

    @property
    def scale(self) -> float:
        """Intensity per stored unit."""
        ...

    @property
    def levels(self) -> Sequence[LevelLike]:
        """The pyramid, level 0 first."""
        ...


@dataclass(frozen=True)
class ViewParameters:
    """All that rendering a view needs besides its crop. Triples are z, y, x, before `order` permutes the axes.

    level, start, shape: the crop to read. first, step: crop voxel index of output voxel i is first + step · i (step < 0
    is a flip). low, high: where the scan ends, in the same coordinates. size: output voxels. order: output axis i shows
    sampled axis order[i]. spacing_mm: of the output, after `order`. corner, side: the field of view's lower corner and
    sides in level-0 index coordinates. air: the value outside the scan. scale: stored value × scale = intensity.
    """

    kind: str
    view: int
    level: int
    start: Triple
    shape: Triple
    first: TripleF
    step: TripleF
    low: TripleF
    high: TripleF
    size: Triple
    order: Triple
    spacing_mm: TripleF
    corner: TripleF
    side: TripleF
    air: float
    scale: float
    appearance: Appearance
    body_fraction: float
    values: tuple[float, float] | None = None


def sample_parameters(
    config: ViewsConfig, entry: EntryLike, coarse: Coarse, *, seed: int, draw: int
) -> list[ViewParameters]:
    """Return the parameters of the draw's global views and then its local views, from `config`, already checked."""
    kinds = [("global", config.global_views)] * config.global_views.count
    kinds += [("local", config.local_views)] * config.local_views.count
    views: list[ViewParameters] = []
    reference: tuple[np.ndarray, np.ndarray] | None = None
    for number, (kind, view) in enumerate(kinds):
        position = number if kind == "global" else number - config.global_views.count
        random = randomness.generator(seed, draw, number)
        side = _sample_side(view, entry, coarse, random)
        corner, body = _sample_corner(view, entry, coarse, side, reference, random)
        chosen = view.appearance[position % len(view.appearance)]
        noise_key = randomness.word(seed, draw, number, "noise")
        appearance = sample_appearance(chosen, random, noise_key=noise_key)
        views.append(_parameters(kind, number, view, chosen, entry, coarse, corner, side, body, appearance, random))
        if reference is None:
            reference = (corner, side)
    return views


def view_affine(parameters: ViewParameters, affine: np.ndarray, factor: Sequence[int]) -> np.ndarray:
    """Return the (4, 4) affine, view voxel (z, y, x) → RAS mm, of a view of a scan with level-0 `affine`.

    factor: of the level that the view was read at.
    """
    f = np.asarray(factor, dtype=np.float64)
    to_level0 = np.eye(4)
    order = list(parameters.order)
    scale = np.asarray(parameters.step) * f
    to_level0[:3, :3] = np.diag(scale)[:, order]
    to_level0[:3, 3] = (np.asarray(parameters.first) + np.asarray(parameters.start)) * f + (f - 1) / 2
    return np.asarray(affine, dtype=np.float64) @ to_level0


def _sample_side(view: ViewConfig, entry: EntryLike, coarse: Coarse, random: np.random.Generator) -> np.ndarray:
    """Return the field of view's sides (z, y, x) in mm."""
    spacing = np.asarray(entry.spacing_mm)
    uniform = random.random(3)
    extent = np.asarray(entry.shape) * spacing
    if view.in_plane_share:
        extent = (np.asarray(coarse.box[1]) - np.asarray(coarse.box[0])) * spacing
        through = np.array(view.through_plane_share) * extent[0]
        in_plane = np.sqrt(np.array(view.in_plane_share) * extent[1] * extent[2])
    else:
        through, in_plane = np.array(view.through_plane_mm), np.array(view.in_plane_mm)
    ratio = np.sqrt(_log_uniform(view.aspect[0], view.aspect[1], uniform[2]))
    z = _side(through, extent[0], view.finest * spacing[0] * view.size[0], uniform[0])
    finest = view.finest * max(spacing[1] * view.size[1], spacing[2] * view.size[2])
    yx = _side(in_plane, max(extent[1:]), finest, uniform[1])
    return np.array([z, yx * ratio, yx / ratio])


def _side(limits: np.ndarray, extent: float, finest: float, uniform: float) -> float:
    """Return a log-uniform side within `limits`, in mm.

    No larger than the scan where the range allows, so that padding is not most of it; then no finer than `finest`.
    """
    high = min(limits[1], max(limits[0], extent))
    low = min(max(limits[0], finest), high)
    return _log_uniform(low, high, uniform)


def _log_uniform(low: float, high: float, uniform: float) -> float:
    return float(low * (high / low) ** uniform)


def _sample_corner(
    view: ViewConfig,
    entry: EntryLike,
    coarse: Coarse,
    side_mm: np.ndarray,
    reference: tuple[np.ndarray, np.ndarray] | None,
    random: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """Return the field of view's lower corner in level-0 index coordinates, and its share of body.

    The first of `tries` places that holds enough body, else the one that holds most.
    """
    spacing = np.asarray(entry.spacing_mm)
    side = side_mm / spacing
    begin, end = np.full(3, -0.5), np.asarray(entry.shape) - 0.5
    if view.in_plane_share:
        begin, end = np.asarray(coarse.box[0]), np.asarray(coarse.box[1])
    low, high = np.minimum(begin, end - side), np.maximum(begin, end - side)
    if reference is not None and view.overlap > 0:
        corner, sides = reference[0], reference[1] / spacing
        shared = view.overlap * np.minimum(side, sides)
        low = np.clip(corner + shared - side, low, high)
        high = np.clip(corner + sides - shared, low, high)
    places = low + random.random((view.tries, 3)) * (high - low)
    body = coarse.body_fraction(places, places + side)
    enough = np.flatnonzero(body >= view.body_fraction)
    chosen = int(enough[0]) if len(enough) else int(np.argmax(body))
    return places[chosen], float(body[chosen])


def _parameters(
    kind: str,
    number: int,
    view: ViewConfig,
    chosen: AppearanceConfig,
    entry: EntryLike,
    coarse: Coarse,
    corner: np.ndarray,
    side_mm: np.ndarray,
    body: float,
    appearance: Appearance,
    random: np.random.Generator,
) -> ViewParameters:
    """Return the crop and the sampling grid of a field of view at `corner` with sides `side_mm`."""
    order, flips = _sample_orientation(chosen, random)
    size = np.asarray(view.shape)
    wanted = side_mm / size
    factors = [level.factor for level in entry.levels]
    level = choose_level(entry.spacing_mm, factors, _floats(wanted))
    factor = np.asarray(factors[level], dtype=np.float64)
    pitch = wanted / np.asarray(entry.spacing_mm)
    first = level_index(corner + pitch / 2, factors[level])
    step = pitch / factor
    last = first + step * (size - 1)
    grid = np.asarray(entry.levels[level].shape)
    start = np.clip(np.floor(first), 0, grid - 1).astype(int)
    stop = np.clip(np.ceil(last).astype(int) + 1, start + 1, grid)
    first, step = np.where(flips, last, first), np.where(flips, -step, step)
    return ViewParameters(
        kind=kind,
        view=number,
        level=level,
        start=_integers(start),
        shape=_integers(stop - start),
        first=_floats(first - start),
        step=_floats(step),
        low=_floats(level_index(np.full(3, -0.5), factors[level]) - start),
        high=_floats(level_index(np.asarray(entry.shape) - 0.5, factors[level]) - start),
        size=_integers(size),
        order=_integers(np.asarray(order)),
        spacing_mm=_floats(wanted[order]),
        corner=_floats(corner),
        side=_floats(side_mm / np.asarray(entry.spacing_mm)),
        air=float(AIR_HU) if entry.modality == "CT" else float(entry.value_range[0]),
        scale=float(entry.scale),
        appearance=appearance,
        body_fraction=body,
        values=coarse.values,
    )


def _sample_orientation(config: AppearanceConfig, random: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """Return (order, flips): the sampled axis that each output axis shows, and which sampled axes run backwards."""
    uniform = random.random(6)
    order = [0, 1, 2]
    flips = uniform[:3] < np.asarray(config.flip)
    for (a, b), value, probability in zip(PLANES, uniform[3:], config.turn, strict=True):
        if value < probability:
            order[a], order[b] = order[b], order[a]
            # A quarter turn is a transposition and one reversal; which of the two makes it left or right.
            flips[order[a] if value < probability / 2 else order[b]] ^= True
    return order, flips


def _integers(values: np.ndarray) -> Triple:
    z, y, x = (int(v) for v in values)
    return (z, y, x)


def _floats(values: np.ndarray) -> TripleF:
    z, y, x = (float(v) for v in values)
    return (z, y, x)

"""Where a labelled window lies: its grid in the world, drawn from (seed, draw), and the crops that show it.

A window is a grid of voxels in RAS millimetres. Every volume that shows it, the scan, the paired scan on whatever grid,
the mask, is cut and resampled onto that one grid, so that they cannot come apart.
"""

from dataclasses import dataclass

import numpy as np

from fmct.data.foreground import Coarse
from fmct.data.label_sampler import HARD_NEGATIVE, POSITIVE, UNIFORM
from fmct.data.mask_bank import LesionMask
from fmct.data.window_config import SpatialConfig, WindowGrid, WindowsConfig
from fmct.pyramid import choose_level, level_index
from fmct.shapes import Triple, TripleF
from fmct.store.manifest import Entry
from fmct.volume import AIR_HU, CANONICAL, axis_changes

_STRAIGHT = 1e-4  # a smaller off-axis step per voxel is rounding of the affine, not a turn


@dataclass(frozen=True)
class Place:
    """A window's grid. steps: (3, 3), level-0 index of the scan per window voxel; centre: (3,) level-0 index.

    size: voxels; spacing_mm: of the window; whole: it covers the whole scan.
    """

    steps: np.ndarray
    centre: np.ndarray
    size: Triple
    spacing_mm: TripleF
    whole: bool

    @property
    def to_level0(self) -> np.ndarray:
        """The (4, 4) map from window voxel (z, y, x) to the scan's level-0 index."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.steps
        matrix[:3, 3] = self.centre - self.steps @ ((np.asarray(self.size) - 1) / 2)
        return matrix


@dataclass(frozen=True)
class CropPlan:
    """A box to read of a volume, and how a window lies in it.

    matrix: (3, 4), window voxel → crop voxel. low, high: where the volume ends, in crop voxels. air: value outside;
    scale: stored value × scale = intensity.
    """

    level: int
    start: Triple
    shape: Triple
    matrix: np.ndarray
    low: TripleF
    high: TripleF
    air: float
    scale: float

    @property
    def order(self) -> Triple | None:
        """The window axis that each crop axis runs along, None where the window is turned against the crop."""
        steps = np.abs(self.matrix[:, :3])
        axes = steps.argmax(axis=1)
        rest = steps.copy()
        rest[np.arange(3), axes] = 0
        if sorted(axes.tolist()) != [0, 1, 2] or rest.max() > _STRAIGHT * steps.max():
            return None
        return (int(axes[0]), int(axes[1]), int(axes[2]))


def sample_place(
    entry: Entry,
    grid: WindowGrid,
    config: WindowsConfig,
    *,
    kind: str,
    body: Coarse,
    mask: LesionMask | None,
    orientation: str,
    random: np.random.Generator,
) -> Place:
    """Return a window of a scan: inside it along each axis on which the scan is larger, else all of it and air."""
    order, reversed_axes = axis_changes(CANONICAL, orientation)
    extent = (np.asarray(entry.shape) * np.asarray(entry.spacing_mm))[list(order)]
    turn, magnification = sample_turn(config.spatial, random)
    spacing = extent / grid.size if grid.spacing_mm is None else np.asarray(grid.spacing_mm)
    axes = np.zeros((3, 3))  # window mm → level-0 index
    for axis, (source, backwards) in enumerate(zip(order, reversed_axes, strict=True)):
        axes[source, axis] = (-1 if backwards else 1) / entry.spacing_mm[source]
    steps = axes @ turn @ np.diag(spacing / magnification)
    side = np.abs(steps) @ np.asarray(grid.size)
    corner = _sample_corner(entry, config, side, kind=kind, body=body, mask=mask, random=random)
    return Place(
        steps=steps,
        centre=corner + side / 2,
        size=grid.size,
        spacing_mm=_floats(spacing / magnification),
        whole=grid.spacing_mm is None or bool((side >= 0.95 * np.asarray(entry.shape)).all()),
    )


def crop_plan(place: Place, scan: Entry, volume: Entry) -> CropPlan:
    """Return the box of `volume` (the scan itself, or its paired scan) that a window of `scan` shows."""
    to_volume = place.to_level0
    if volume is not scan:
        to_volume = np.linalg.solve(np.array(volume.affine), np.array(scan.affine)) @ to_volume
    wanted = np.linalg.norm(to_volume[:3, :3], axis=1) * np.asarray(volume.spacing_mm)
    level = choose_level(volume.spacing_mm, volume.factors, wanted.tolist())
    factor = np.asarray(volume.levels[level].factor, dtype=np.float64)
    matrix = np.concatenate(
        [to_volume[:3, :3] / factor[:, None], level_index(to_volume[:3, 3], factor.tolist())[:, None]], axis=1
    )
    last = np.asarray(place.size) - 1
    ends = matrix[:, 3:] + np.stack([np.minimum(matrix[:, :3] * last, 0), np.maximum(matrix[:, :3] * last, 0)]).sum(2).T
    shape = np.asarray(volume.levels[level].shape)
    start = np.clip(np.floor(ends[:, 0]), 0, shape - 1).astype(int)
    stop = np.clip(np.ceil(ends[:, 1]).astype(int) + 1, start + 1, shape)
    matrix[:, 3] -= start
    return CropPlan(
        level=level,
        start=_integers(start),
        shape=_integers(stop - start),
        matrix=matrix,
        low=_floats(level_index(np.full(3, -0.5), factor.tolist()) - start),
        high=_floats(level_index(np.asarray(volume.shape) - 0.5, factor.tolist()) - start),
        air=float(AIR_HU) if volume.modality == "CT" else float(volume.value_range[0]),
        scale=float(volume.scale),
    )


def sample_turn(config: SpatialConfig, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return (rotation with flips, (3, 3) in window mm; magnification); always as many random numbers."""
    uniform = random.random(8)
    flips = np.where(uniform[:3] < np.asarray(config.flip), -1.0, 1.0)
    turn = np.eye(3)
    if uniform[3] < config.rotation_probability:
        angles = np.radians(config.rotation_degrees) * (2 * uniform[4:7] - 1)
        for axis, angle in enumerate(angles.tolist()):
            turn = turn @ _rotation(axis, angle)
    low, high = config.scale
    return turn * flips, float(low * (high / low) ** uniform[7])


def _rotation(axis: int, angle: float) -> np.ndarray:
    a, b = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def _sample_corner(
    entry: Entry,
    config: WindowsConfig,
    side: np.ndarray,
    *,
    kind: str,
    body: Coarse,
    mask: LesionMask | None,
    random: np.random.Generator,
) -> np.ndarray:
    """Return the lower corner of a window with sides `side`, both in level-0 index coordinates."""
    begin, end = np.full(3, -0.5), np.asarray(entry.shape) - 0.5
    low, high = np.minimum(begin, end - side), np.maximum(begin, end - side)
    lesions = mask is not None and not mask.empty
    if lesions and kind == POSITIVE:
        assert mask is not None
        share = 0.5 + (random.random(3) - 0.5) * config.middle
        return np.clip(lesion_point(mask, random) - share * side, low, high)
    places = low + random.random((config.tries, 3)) * (high - low)
    if lesions and kind == HARD_NEGATIVE:
        assert mask is not None
        reach = side / 2 + config.near_mm / np.asarray(entry.spacing_mm)
        about = lesion_point(mask, random) - side / 2
        places = np.clip(about + (2 * random.random((config.tries, 3)) - 1) * reach, low, high)
        shown = np.array([_lesion_voxels(mask, corner, side) for corner in places])
        if shown.min() > 0:  # large lesions may leave no room
            places = np.concatenate([places, _away_from(mask, low, high)[None]])
            shown = np.append(shown, _lesion_voxels(mask, places[-1], side))
        places = places[shown == shown.min()]
    if config.place == "body_axis" and kind == UNIFORM:
        places = _about_the_body(places, low, high, side, config.jitter_mm / np.asarray(entry.spacing_mm), body, random)
    held = body.body_fraction(places, places + side)
    enough = np.flatnonzero(held >= config.body_fraction)
    return places[int(enough[0]) if len(enough) else int(np.argmax(held))]


def _about_the_body(
    places: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    side: np.ndarray,
    jitter: np.ndarray,
    body: Coarse,
    random: np.random.Generator,
) -> np.ndarray:
    """Return corners that keep their place along the body and lie about its middle across it."""
    middles = body.middle(places[:, 0], places[:, 0] + side[0])
    moved = middles + (2 * random.random(middles.shape) - 1) * jitter[1:]
    return np.concatenate([places[:, :1], np.clip(moved - side[1:] / 2, low[1:], high[1:])], axis=1)


def lesion_point(mask: LesionMask, random: np.random.Generator) -> np.ndarray:
    """Return a voxel of a lesion, every lesion alike."""
    u = random.random(2)
    chosen = np.flatnonzero(mask.lesion == int(u[0] * (int(mask.lesion.max()) + 1)))
    return mask.points[chosen[int(u[1] * len(chosen))]].astype(np.float64)


def _lesion_voxels(mask: LesionMask, corner: np.ndarray, side: np.ndarray) -> int:
    low = np.maximum(np.floor(corner + 0.5).astype(int) - mask.start, 0)
    high = np.maximum(np.ceil(corner + side + 0.5).astype(int) - mask.start, 0)
    return int(np.count_nonzero(mask.box[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]))


def _away_from(mask: LesionMask, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the corner within the range that is farthest from the lesions' middle."""
    middle = mask.points.mean(axis=0)
    return np.where(np.abs(low - middle) > np.abs(high - middle), low, high)


def _integers(values: np.ndarray) -> Triple:
    z, y, x = (int(v) for v in values)
    return (z, y, x)


def _floats(values: np.ndarray) -> TripleF:
    z, y, x = (float(v) for v in values)
    return (z, y, x)

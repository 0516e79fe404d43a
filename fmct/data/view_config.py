"""What views are drawn: the configuration of multi-crop for 3D CT. Lengths in mm, triples z, y, x."""

from dataclasses import dataclass, field

from fmct.errors import ConfigError
from fmct.shapes import Triple, triple
from fmct.windows import Window


@dataclass(frozen=True)
class Chance:
    """Something that happens with a probability, with a strength drawn uniformly from `range` (two numbers)."""

    probability: float = 0.0
    range: list[float] = field(default_factory=lambda: [0.0, 0.0])


@dataclass(frozen=True)
class AppearanceConfig:
    """How a view's orientation and intensities vary. The last block is off by default: published recipes use it.

    flip: probability per axis z, y, x; x is left-right, off because findings have a side. turn: probability of a
    quarter turn in the planes yx, zx, zy. shift_hu is added and gain multiplies (about 0 HU). blur: sigma in view
    voxels. noise_hu: standard deviation. gamma, histogram: on window values in [0, 1]; histogram's range is the number
    of control points. ringing: share of the frequencies kept. sharpen: amount of unsharp masking.
    one_of: names of which at most one happens, with one_of_probability (their own probabilities are not used).
    """

    flip: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.0])
    shift_hu: Chance = field(default_factory=lambda: Chance(0.8, [-10.0, 10.0]))
    gain: Chance = field(default_factory=lambda: Chance(0.8, [0.98, 1.02]))
    blur: Chance = field(default_factory=lambda: Chance(0.3, [0.3, 0.8]))
    noise_hu: Chance = field(default_factory=lambda: Chance(0.3, [2.0, 20.0]))

    turn: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    gamma: Chance = field(default_factory=Chance)
    histogram: Chance = field(default_factory=Chance)
    ringing: Chance = field(default_factory=Chance)
    sharpen: Chance = field(default_factory=Chance)
    one_of: list[str] = field(default_factory=list)
    one_of_probability: float = 0.0


@dataclass(frozen=True)
class ViewConfig:
    """One kind of view: how many, how many voxels (z, y, x), and how much of the body they see.

    in_plane_mm, through_plane_mm: ranges of the field of view's side along y and x, and along z, log-uniform. The
    shares, where given, replace them: the share of the body's area in plane, of its length through plane. aspect: range
    of the in-plane ratio of sides y : x, log-uniform. body_fraction: a place with less body than this is not taken
    unless `tries` places are all poorer; then the best is. overlap: the share, per axis, of the smaller of the two
    sides that lies within the draw's first global view (0: anywhere in the scan). finest: a view's voxels are at least
    this share of the scan's own spacing, as far as the range allows: interpolated slices teach nothing.
    appearance: view i of this kind uses item i modulo the list's length.
    """

    count: int = 2
    size: list[int] = field(default_factory=lambda: [96, 96, 96])
    in_plane_mm: list[float] = field(default_factory=lambda: [96.0, 288.0])
    through_plane_mm: list[float] = field(default_factory=lambda: [96.0, 288.0])
    in_plane_share: list[float] = field(default_factory=list)
    through_plane_share: list[float] = field(default_factory=list)
    aspect: list[float] = field(default_factory=lambda: [1.0, 1.0])
    finest: float = 0.5
    body_fraction: float = 0.5
    tries: int = 16
    overlap: float = 0.5
    appearance: list[AppearanceConfig] = field(default_factory=lambda: [AppearanceConfig()])

    @property
    def shape(self) -> Triple:
        """The number of voxels along (z, y, x)."""
        return triple(self.size, "views.size")


def _local_views() -> ViewConfig:
    return ViewConfig(count=4, size=[48, 48, 48], in_plane_mm=[36.0, 96.0], through_plane_mm=[36.0, 96.0], overlap=1.0)


@dataclass(frozen=True)
class ViewsConfig:
    """Global and local views and the intensity windows, one channel each.

    body_above: a coarse voxel brighter than this is body (HU for CT); None takes each scan's mean. percentiles: instead
    of windows, one channel scaled to [−1, 1] between two percentiles of each scan (it erases HU).
    """

    global_views: ViewConfig = field(default_factory=ViewConfig)
    local_views: ViewConfig = field(default_factory=_local_views)
    windows: list[Window] = field(
        default_factory=lambda: [
            Window(-160.0, 240.0, "soft tissue"),
            Window(-1000.0, 200.0, "lung"),
            Window(-500.0, 1300.0, "bone"),
        ]
    )
    body_above: float | None = -500.0
    percentiles: list[float] = field(default_factory=list)

    @property
    def channels(self) -> int:
        """The number of channels of a view."""
        return 1 if self.percentiles else len(self.windows)


def check_views(config: ViewsConfig) -> None:
    """Raise ConfigError where a range, count or probability cannot be."""
    if not config.windows and not config.percentiles:
        raise ConfigError("views.windows: empty. Give at least one {low, high}, such as {low: -160, high: 240}.")
    if config.percentiles and (
        len(config.percentiles) != 2 or not 0 <= config.percentiles[0] < config.percentiles[1] <= 100
    ):
        raise ConfigError(f"views.percentiles: expected two rising numbers in 0 … 100, got {config.percentiles}.")
    for window in config.windows:
        if window.high <= window.low or window.offset_and_scale[1] == 0:
            raise ConfigError(
                f"views.windows: {window.name or 'a window'}: low {window.low} is not below high {window.high}."
            )
    if config.global_views.count < 1:
        raise ConfigError(f"views.global_views.count: expected at least 1, got {config.global_views.count}.")
    for name in ("global_views", "local_views"):
        _check_kind(getattr(config, name), f"views.{name}")


def _check_kind(view: ViewConfig, where: str) -> None:
    if view.count < 0 or view.tries < 1 or not view.appearance:
        raise ConfigError(f"{where}: count must be ≥ 0, tries ≥ 1 and appearance not empty.")
    if min(triple(view.size, f"{where}.size")) < 1:
        raise ConfigError(f"{where}.size: expected positive numbers of voxels, got {view.size}.")
    for key in ("in_plane_mm", "through_plane_mm", "aspect"):
        _check_range(getattr(view, key), f"{where}.{key}", low=0.0)
    for key in ("in_plane_share", "through_plane_share"):
        if getattr(view, key):
            _check_range(getattr(view, key), f"{where}.{key}", low=0.0)
    if bool(view.in_plane_share) != bool(view.through_plane_share):
        raise ConfigError(f"{where}: give both in_plane_share and through_plane_share, or neither.")
    for key in ("overlap", "body_fraction"):
        if not 0 <= getattr(view, key) <= 1:
            raise ConfigError(f"{where}.{key}: expected a share in 0 … 1, got {getattr(view, key)}.")
    for number, appearance in enumerate(view.appearance):
        _check_appearance(appearance, view.shape, f"{where}.appearance[{number}]")


def _check_range(values: list[float], where: str, *, low: float) -> None:
    if len(values) != 2 or not low < values[0] <= values[1]:
        raise ConfigError(f"{where}: expected [low, high] with {low:g} < low ≤ high, got {values}.")


STRENGTHS = ("shift_hu", "gain", "blur", "noise_hu", "gamma", "histogram", "ringing", "sharpen")


def _check_appearance(appearance: AppearanceConfig, size: Triple, where: str) -> None:
    if len(appearance.flip) != 3 or len(appearance.turn) != 3:
        raise ConfigError(f"{where}: flip and turn need three probabilities each (axes z, y, x; planes yx, zx, zy).")
    for probability, (a, b) in zip(appearance.turn, PLANES, strict=True):
        if probability > 0 and size[a] != size[b]:
            raise ConfigError(f"{where}.turn: a quarter turn needs equal sides, but the view has {size} voxels.")
    unknown = [name for name in appearance.one_of if name not in STRENGTHS]
    if unknown:
        raise ConfigError(f"{where}.one_of: unknown {unknown[0]!r}; known are {', '.join(STRENGTHS)}.")
    for name in STRENGTHS:
        chance: Chance = getattr(appearance, name)
        if not 0 <= chance.probability <= 1 or len(chance.range) != 2 or chance.range[0] > chance.range[1]:
            raise ConfigError(
                f"{where}.{name}: expected a probability in 0 … 1 and a range [low, high], got {chance.probability} "
                f"and {chance.range}."
            )


PLANES: tuple[tuple[int, int], ...] = ((1, 2), (0, 2), (0, 1))

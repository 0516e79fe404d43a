"""What labelled windows are drawn: their size, where they lie, and how they vary. Lengths in mm, triples z, y, x."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fmct.data.view_config import AppearanceConfig, Chance
from fmct.errors import ConfigError
from fmct.preprocess import Preprocessing
from fmct.shapes import Triple, TripleF, triple, triple_of_floats
from fmct.windows import Window

SCOPES = ("local", "global")
PLACES = ("anywhere", "body_axis")


@dataclass(frozen=True)
class SpatialConfig:
    """How a window's place varies: one transform for scan, paired scan, mask and validity.

    flip: probability per axis z, y, x; x is left-right, to be left at 0 where a label has a side. rotation_degrees:
    largest angle about z, y, x, drawn evenly, with rotation_probability. scale: range of magnification, log-uniform.
    """

    flip: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    rotation_degrees: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    rotation_probability: float = 0.0
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])


@dataclass(frozen=True)
class IntensityConfig:
    """How intensities vary, drawn apart for the scan and the paired scan.

    shift and noise are in the scan's units (HU for CT), gain multiplies, blur is a sigma in window voxels; gamma acts
    on window values brought to [0, 1].
    """

    shift: Chance = field(default_factory=Chance)
    gain: Chance = field(default_factory=Chance)
    blur: Chance = field(default_factory=Chance)
    noise: Chance = field(default_factory=Chance)
    gamma: Chance = field(default_factory=Chance)

    @property
    def appearance(self) -> AppearanceConfig:
        """The same as the configuration of a view's appearance, without flips."""
        return AppearanceConfig(
            flip=[0.0, 0.0, 0.0],
            shift_hu=self.shift,
            gain=self.gain,
            blur=self.blur,
            noise_hu=self.noise,
            gamma=self.gamma,
        )


@dataclass(frozen=True)
class SharesConfig:
    """The share of the draws of each kind; they are dealt out evenly, not thrown.

    positive: a lesion voxel lies in the middle part of the window (every lesion alike, however large). hard_negative:
    no lesion in the window (or the least that can be had, where lesions leave no room), in a series whose lesions are
    known; near a lesion where there is one. uniform: anywhere in the body. unlabelled: series without any label or
    mask. Without masks every labelled draw is uniform.
    """

    positive: float = 1 / 3
    hard_negative: float = 1 / 3
    uniform: float = 1 / 3
    unlabelled: float = 0.0


@dataclass(frozen=True)
class WindowsConfig:
    """Windows for training. Intensity windows, spacing and size come from the encoder's preprocessing.

    size: voxels; empty takes the encoder's. spacing_mm: empty takes the encoder's, and another is a mismatch unless
    `other_spacing` says that it is meant. balance: a target whose positive and negative
    series are drawn equally often. v_min_mm3: lesion volume from which a window is positive; above 0 and below it the
    window's label is unknown. label_scope: `local` findings lie somewhere in a series (a window of a positive series
    without a mask is unknown), `global` ones are properties of the whole scan, which every window has. middle: share of
    the window's side in which a positive draw's lesion voxel lies. body_above, body_fraction: what is body (HU for CT;
    null: above the series' mean), and how much of it a uniform window holds. near_mm: how far from a lesion hard
    negatives of a positive series are looked for. tries: places tried for a hard negative or uniform window.
    paired_windows: intensity windows of the paired scan; empty takes the encoder's, where the modality is the same.
    per_series: how many consecutive draws show one series, for bags of windows. place: of uniform windows, `anywhere`,
    or `body_axis`: anywhere along the body, and about its middle across it, within jitter_mm.
    """

    size: list[int] = field(default_factory=list)
    spacing_mm: list[float] = field(default_factory=list)
    other_spacing: bool = False
    shares: SharesConfig = field(default_factory=SharesConfig)
    balance: str = ""
    spatial: SpatialConfig = field(default_factory=SpatialConfig)
    intensity: IntensityConfig = field(default_factory=IntensityConfig)
    paired_intensity: IntensityConfig = field(default_factory=IntensityConfig)
    paired_windows: list[Window] = field(default_factory=list)
    v_min_mm3: float = 20.0
    label_scope: str = "local"
    middle: float = 0.5
    body_above: float | None = -500.0
    body_fraction: float = 0.25
    near_mm: float = 60.0
    tries: int = 16
    per_series: int = 1
    place: str = "anywhere"
    jitter_mm: float = 10.0

    def without_augmentation(self) -> "WindowsConfig":
        """Return the same windows as they are: no flips, turns, scaling or changes of intensity."""
        still = IntensityConfig()
        return replace(self, spatial=SpatialConfig(), intensity=still, paired_intensity=still)


@dataclass(frozen=True)
class WindowGrid:
    """The voxels of every window: size, and spacing in mm (None: the whole field of view is stretched to size)."""

    size: Triple
    spacing_mm: TripleF | None


def window_grid(config: WindowsConfig, preprocessing: Preprocessing) -> WindowGrid:
    """Return size and spacing of the windows for an encoder.

    Raises ConfigError for a spacing that is not the encoder's and was not said to be meant, and where the encoder takes
    whole series of any size and no window size is given.
    """
    spec = preprocessing.input
    if spec.steps is not None:
        raise ConfigError(
            "windows: this encoder takes a series as a whole, by steps of its own (preprocess.json: input.steps), and "
            "windows would be another input than it knows. Use recipe finetune.head_ct, which keeps those steps."
        )
    if spec.mode == "whole" and not config.size:
        raise ConfigError("windows.size: this encoder takes whole series of any size; say how large windows are.")
    size = triple(config.size, "windows.size") if config.size else spec.size_voxels
    if not config.spacing_mm or spec.spacing_mm is None:
        if config.spacing_mm:
            raise ConfigError("windows.spacing_mm: this encoder stretches the whole scan to its input; leave it out.")
        return WindowGrid(size, spec.spacing_mm)
    spacing = triple_of_floats(config.spacing_mm, "windows.spacing_mm")
    same = all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(spacing, spec.spacing_mm, strict=True))
    if not same and not config.other_spacing:
        raise ConfigError(
            f"windows.spacing_mm={list(spacing)}: the encoder was trained at {list(spec.spacing_mm)} mm. Leave it out, "
            "or say that another spacing is meant: windows.other_spacing=true."
        )
    return WindowGrid(size, spacing if not same else spec.spacing_mm)


def check_windows(config: WindowsConfig) -> None:
    """Raise ConfigError where a share, range or probability cannot be."""
    shares = vars(config.shares)
    if min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise ConfigError(f"windows.shares: expected shares that are not negative and not all 0, got {shares}.")
    if config.label_scope not in SCOPES:
        raise ConfigError(f"windows.label_scope={config.label_scope}: expected one of {', '.join(SCOPES)}.")
    if config.size and min(triple(config.size, "windows.size")) < 1:
        raise ConfigError(f"windows.size: expected positive numbers of voxels, got {config.size}.")
    if config.spacing_mm and min(triple_of_floats(config.spacing_mm, "windows.spacing_mm")) <= 0:
        raise ConfigError(f"windows.spacing_mm: expected positive millimetres, got {config.spacing_mm}.")
    if config.tries < 1 or config.v_min_mm3 < 0 or config.near_mm < 0:
        raise ConfigError("windows: tries must be ≥ 1, v_min_mm3 and near_mm ≥ 0.")
    if config.per_series < 1 or config.jitter_mm < 0 or config.place not in PLACES:
        raise ConfigError(
            f"windows: per_series must be ≥ 1, jitter_mm ≥ 0 and place one of {', '.join(PLACES)}; got "
            f"{config.per_series}, {config.jitter_mm} and {config.place}."
        )
    for name in ("middle", "body_fraction"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"windows.{name}: expected a share in 0 … 1, got {getattr(config, name)}.")
    _check_spatial(config.spatial)
    for name in ("intensity", "paired_intensity"):
        for key, chance in vars(getattr(config, name)).items():
            if not 0 <= chance.probability <= 1 or len(chance.range) != 2 or chance.range[0] > chance.range[1]:
                raise ConfigError(
                    f"windows.{name}.{key}: expected a probability in 0 … 1 and a range [low, high], got "
                    f"{chance.probability} and {chance.range}."
                )


def _check_spatial(config: SpatialConfig) -> None:
    if len(config.flip) != 3 or not all(0 <= p <= 1 for p in (*config.flip, config.rotation_probability)):
        raise ConfigError("windows.spatial: flip is three probabilities (z, y, x), rotation_probability is one.")
    if len(config.rotation_degrees) != 3 or min(config.rotation_degrees) < 0:
        raise ConfigError("windows.spatial.rotation_degrees: expected three largest angles ≥ 0, about z, y and x.")
    if len(config.scale) != 2 or not 0 < config.scale[0] <= config.scale[1]:
        raise ConfigError(f"windows.spatial.scale: expected [low, high] with 0 < low ≤ high, got {config.scale}.")


def paired_windows(config: WindowsConfig, preprocessing: Preprocessing, modalities: Sequence[str]) -> list[Window]:
    """Return the intensity windows of the paired scans, [] where the run has none.

    modalities: of the paired scans. Raises ConfigError where they are not the encoder's and no windows are given, or
    mixed.
    """
    found = sorted(set(modalities))
    if not found:
        return []
    if len(found) > 1:
        raise ConfigError(f"the paired scans mix the modalities {', '.join(found)}, whose intensities differ.")
    if config.paired_windows:
        return list(config.paired_windows)
    if found != [preprocessing.modality] or not preprocessing.windows:
        raise ConfigError(
            f"windows.paired_windows: the paired scans are {found[0]}; say which intensities to show, such as "
            "[{low: 0, high: 10}] for a PET in SUV."
        )
    return list(preprocessing.windows)

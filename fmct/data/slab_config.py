"""What slabs are drawn: their size, spacing, which kinds, how they vary, and how many labels may be used."""

from dataclasses import dataclass, field, replace

from fmct.data.window_config import IntensityConfig, SpatialConfig, WindowsConfig, check_windows
from fmct.errors import ConfigError
from fmct.shapes import triple, triple_of_floats


@dataclass(frozen=True)
class BudgetConfig:
    """How many labels of the training split may be used. 0: all there are.

    masks: patients whose masks are used; the slabs of the others are unknown. patients: patients whose label is used,
    with the classes in their proportion; the others are left out. seed: of the draw. Draws of one seed are nested: a
    smaller budget is part of every larger one, and the masks go to patients whose label is used.
    """

    masks: int = 0
    patients: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.masks, self.patients, self.seed) < 0:
            raise ConfigError(f"budget: expected numbers that are not negative; got {vars(self)}.")


@dataclass(frozen=True)
class SlabsConfig:
    """Slabs for training: `size` voxels (z, y, x) at `spacing_mm`, the centre crop in-plane.

    size, spacing_mm: empty takes the encoder's. A spacing of 0 in-plane is each scan's own pixel, as published.
    positive: the share of draws that show an annotated lesion; the others are slabs of negative patients. v_min_mm3:
    lesion volume from which a slab is positive. middle: share of the slab's height in which a positive draw's lesion
    voxel lies.
    spatial, intensity: how slabs vary, in-plane (a turn is about z); spatial.flip[0] and turns about y and x are 0.
    """

    size: list[int] = field(default_factory=list)
    spacing_mm: list[float] = field(default_factory=list)
    positive: float = 0.5
    v_min_mm3: float = 5.0
    middle: float = 1.0
    spatial: SpatialConfig = field(default_factory=SpatialConfig)
    intensity: IntensityConfig = field(default_factory=IntensityConfig)

    @property
    def windows(self) -> WindowsConfig:
        """The same as the configuration of windows, where a part takes that."""
        return WindowsConfig(
            size=list(self.size),
            spacing_mm=list(self.spacing_mm),
            spatial=self.spatial,
            intensity=self.intensity,
            v_min_mm3=self.v_min_mm3,
            middle=self.middle,
        )


def check_slabs(config: SlabsConfig) -> None:
    """Raise ConfigError where a share, size or variation cannot be."""
    if not 0 < config.positive < 1:
        raise ConfigError(f"slabs.positive={config.positive:g}: a share of the draws, above 0 and below 1.")
    if config.size and min(triple(config.size, "slabs.size")) < 1:
        raise ConfigError(f"slabs.size: expected positive numbers of voxels (z, y, x), got {config.size}.")
    if config.spacing_mm:
        z, y, x = triple_of_floats(config.spacing_mm, "slabs.spacing_mm")
        if z <= 0 or min(y, x) < 0:
            raise ConfigError(
                f"slabs.spacing_mm={config.spacing_mm}: positive millimetres; in-plane 0 for the scan's own."
            )
    spatial = config.spatial
    if spatial.flip[:1] != [0.0] or any(spatial.rotation_degrees[1:]):
        raise ConfigError(
            "slabs.spatial: slabs keep their order along z and lie across it: flip[0] and turns about y and x are 0."
        )
    check_windows(replace(config.windows, size=[], spacing_mm=[]))

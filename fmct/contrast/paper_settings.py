"""What the published contrast system's preprocessing is set to: a body-part profile, and its defects as switches.

Ye et al., Radiology: Artificial Intelligence 2022;4(3):e210285. A profile is data: the shipped ones stand in
configs/finetune/contrast_paper.yaml and contrast_paper_chest.yaml, and nothing here knows their names.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmct.config import build, plain
from fmct.errors import ConfigError
from fmct.shapes import TripleF, triple_of_floats

VERSION = 1  # of what the steps compute; a changed step makes other files in the cache
LEGACY_INPUT_SCALE = 1 / 255


@dataclass(frozen=True)
class BodyPartProfile:
    """Which slices of a registered scan are read, and what a scan of that body part looks like.

    slab: slices counted from the top end of the template's grid; first, last: of the slab, both kept. side: pixels of
    the square that is cut around the body's centre. area_cm2: smallest and largest median cross-section of the body;
    lung_share: smallest and largest share of air in it, airways and bowel included; both over the kept slices inside
    the scan. A scan outside them is of another body part. least_coverage: share of the kept slices that have to lie
    inside the scan.
    """

    name: str = ""
    slab: int = 0
    first: int = 0
    last: int = 0
    side: int = 192
    area_cm2: list[float] = field(default_factory=lambda: [0.0, 1e6])
    lung_share: list[float] = field(default_factory=lambda: [0.0, 1.0])
    least_coverage: float = 0.8

    def __post_init__(self) -> None:
        if not self.name or not 0 <= self.first <= self.last < self.slab or self.side < 1:
            raise ConfigError(
                "input.profile: needs a name, a slab of slices and 0 ≤ first ≤ last < slab, as the profiles in "
                "configs/finetune/contrast_paper.yaml and contrast_paper_chest.yaml have them; got "
                f"name {self.name!r}, slab {self.slab}, first {self.first}, last {self.last}, side {self.side}."
            )
        for name, pair in (("area_cm2", self.area_cm2), ("lung_share", self.lung_share)):
            if len(pair) != 2 or not pair[0] < pair[1]:
                raise ConfigError(f"input.profile.{name}: expected [smallest, largest], got {list(pair)}.")
        if not 0 < self.least_coverage <= 1:
            raise ConfigError(f"input.profile.least_coverage: expected a share in (0, 1], got {self.least_coverage}.")

    @property
    def slices(self) -> int:
        """How many slices of a scan are kept."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class LegacySwitches:
    """The published code's defects, each off by default; what is on is named in every table and model card.

    water_outside: outside the scan's field of view the rigid resampling gives 0 HU (water), the one to 1 × 1 × 3 mm 8
    HU (the number of a pixel type). swapped_crop: the row of the body's centre is taken for its column. scan_range:
    values are stretched between the scan's own extremes after clipping. dense_as_water: above 700 HU becomes 0 HU.
    input_scale: networks see values 255 times smaller. last_epoch: the last weights are kept, not the best ones.
    """

    water_outside: bool = False
    swapped_crop: bool = False
    scan_range: bool = False
    dense_as_water: bool = False
    input_scale: bool = False
    last_epoch: bool = False

    @property
    def active(self) -> list[str]:
        """The names of those that are on."""
        return [item.name for item in dataclasses.fields(self) if getattr(self, item.name)]


@dataclass(frozen=True)
class PaperRegistration:
    """Rigid registration to the template by Mattes mutual information, with the published constants.

    sampling: share of voxels that are compared, drawn by `seed`. One thread: equal on every run and machine type.
    """

    bins: int = 50
    sampling: float = 0.01
    seed: int = 1
    learning_rate: float = 1.0
    iterations: int = 100
    convergence: float = 1e-6
    window: int = 10
    shrink: list[int] = field(default_factory=lambda: [4, 2, 1])
    smoothing_mm: list[float] = field(default_factory=lambda: [2.0, 1.0, 0.0])

    def __post_init__(self) -> None:
        if self.seed < 1 or not 0 < self.sampling <= 1:
            raise ConfigError(
                "input.registration: seed is at least 1 (0 would be the clock) and sampling a share in (0, 1]; got "
                f"{self.seed} and {self.sampling}."
            )
        if len(self.shrink) != len(self.smoothing_mm) or not self.shrink:
            raise ConfigError("input.registration: shrink and smoothing_mm have one number a level.")


@dataclass(frozen=True)
class PaperInput:
    """How a scan becomes slices.

    template: the file that every scan is registered to; template_sha256: of that file, checked where it is given.
    spacing_mm: z, y, x of the grid that scans and template are resampled to.
    """

    template: str = ""
    template_sha256: str = ""
    spacing_mm: list[float] = field(default_factory=lambda: [3.0, 1.0, 1.0])
    profile: BodyPartProfile = field(default_factory=lambda: BodyPartProfile("unnamed", slab=1))
    registration: PaperRegistration = field(default_factory=PaperRegistration)

    @property
    def spacing(self) -> TripleF:
        """The spacing as a triple."""
        return triple_of_floats(self.spacing_mm, "input.spacing_mm")


@dataclass(frozen=True)
class Preparation:
    """What decides the values of a prepared scan, beside the scan and the template's voxels."""

    spacing_mm: list[float]
    profile: BodyPartProfile
    registration: PaperRegistration = field(default_factory=PaperRegistration)
    legacy: LegacySwitches = field(default_factory=LegacySwitches)

    @property
    def spacing(self) -> TripleF:
        """The spacing (z, y, x) in mm."""
        return triple_of_floats(self.spacing_mm, "spacing_mm")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return plain(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Preparation":
        """Return the preparation of `to_dict`'s tree. Raises ConfigError for another one."""
        return build(cls, tree, "the model's preparation")

    def fingerprint(self, template: str) -> str:
        """Return a hash of the settings that change a value, and of the template's voxels and grid (its own hash)."""
        tree = self.to_dict()
        used = ("water_outside", "swapped_crop", "scan_range", "dense_as_water")
        tree["legacy"] = {name: tree["legacy"][name] for name in used}
        text = json.dumps([VERSION, tree, template], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def preparation(given: PaperInput, legacy: LegacySwitches) -> Preparation:
    """Return the preparation of a configuration."""
    return Preparation(list(given.spacing), given.profile, given.registration, legacy)

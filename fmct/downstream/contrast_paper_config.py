"""The configuration of a run of the published contrast system."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fmct.config import MISSING
from fmct.contrast.paper_settings import LegacySwitches, PaperInput
from fmct.data.cohort import CohortConfig
from fmct.data.slice_batches import SliceVariation
from fmct.errors import ConfigError
from fmct.metrics.operating_point import RULES
from fmct.models.slice_networks import SliceNetworkConfig
from fmct.train.engine import EngineConfig
from fmct.train.optim import OptimConfig
from fmct.train.schedule import ScheduleConfig, constant
from fmct.train.session import RunConfig


@dataclass(frozen=True)
class ThresholdConfig:
    """What makes a scan positive: a probability strictly above `value` (rule fixed, as published), or from validation.

    rule: fixed, or one of fmct.metrics.operating_point.choose over validation patients, with `level`.
    """

    rule: str = "fixed"
    value: float = 0.5
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.rule not in ("fixed", *RULES) or not 0 < self.value < 1:
            raise ConfigError(
                f"threshold: rule is fixed or one of {', '.join(RULES)}, value lies between 0 and 1; got "
                f"{self.rule!r} and {self.value}."
            )


@dataclass(frozen=True)
class ContrastPaperTraining:
    """The run. input: template, profile and registration; legacy: which published defects are brought back.

    start: a run or model folder of this recipe whose network is trained on (head-neck → chest); start_optimizer: with
    that run's Adam moments, as published; freeze: so many of its first layers stay. epochs: at most; patience: so many
    without a lower validation loss end it, 0 never. variation: null for none. aggregate: mean or fraction (of slices
    with at least ½). published: headneck or chest, for the table. cache: folder of prepared scans, OUTPUT.cache when
    empty, shared by runs; workers: processes that prepare, 0 for one a core. splits: train, validation, test.
    """

    recipe: str = MISSING
    output: str = MISSING
    data: CohortConfig = field(default_factory=CohortConfig)
    input: PaperInput = field(default_factory=PaperInput)
    legacy: LegacySwitches = field(default_factory=LegacySwitches)
    network: SliceNetworkConfig = field(default_factory=SliceNetworkConfig)
    start: str = ""
    start_optimizer: bool = False
    freeze: int = 0
    variation: SliceVariation | None = field(default_factory=SliceVariation)
    aggregate: str = "mean"
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    seed: int = 0
    epochs: int = 500
    patience: int = 20
    batch_size: int = 32
    cache: str = ""
    workers: int = 1
    splits: list[str] = field(default_factory=lambda: ["train", "validation", "test"])
    published: str = ""
    learning_rate: ScheduleConfig = field(default_factory=lambda: constant(1e-5))
    weight_decay: ScheduleConfig = field(default_factory=lambda: constant(0.0))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(clip=0.0, eps=1e-7, last_layer=""))
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(kind="torch"))
    run: RunConfig = field(default_factory=RunConfig)


def thresholds_of(scores: Sequence[float]) -> float:
    """Return the smallest number above every one of `scores`: a score that reaches it is strictly above them."""
    return math.nextafter(max(scores), math.inf)

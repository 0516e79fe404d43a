"""Schedules: every scheduled value of a run as a function of the step alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fmct.errors import ConfigError

KINDS = ("constant", "linear", "cosine", "cosine-dinov2")
SCALING_RULES = ("none", "linear-256", "sqrt-1024", "4sqrt-1024")


@dataclass(frozen=True)
class ScheduleConfig:
    """One scheduled value: a linear warm-up from `start` to `peak`, then the way to `end`, then `end`.

    warmup, tail and freeze are numbers of updates, or shares of the run when at most 1. kind is the way from peak to
    end: `constant` (stays at peak), `linear`, `cosine` (DINOv3: the warm-up stops short of the peak, the cosine
    starts at it and its last value is `end`) or `cosine-dinov2` (the warm-up ends on the peak, the cosine repeats it
    and stops short of `end`). tail: updates at `end` after the way. truncate t: the way is planned 1 + t times as long
    as there is room, so that the value stays above `end`. freeze: updates for which the last layer stands still.
    """

    peak: float = 0.0
    start: float | None = None
    end: float | None = None
    warmup: float = 0.0
    kind: str = "cosine"
    tail: float = 0.0
    truncate: float = 0.0
    freeze: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"schedule kind {self.kind!r}: expected one of {', '.join(KINDS)}.")
        if min(self.warmup, self.tail, self.truncate, self.freeze) < 0:
            raise ConfigError("a schedule's warmup, tail, truncate and freeze must not be negative.")


def constant(value: float) -> ScheduleConfig:
    """Return the schedule that is `value` at every step."""
    return ScheduleConfig(peak=value, kind="constant")


def ramp(share: float = 0.1) -> ScheduleConfig:
    """Return the schedule that rises from 0 at step 0 to 1 after `share` of the run (or so many updates), then stays.

    For the weight of objectives that would disturb a young model.
    """
    return ScheduleConfig(peak=1.0, start=0.0, warmup=share, kind="constant")


def updates(amount: float, total: int) -> int:
    """Return a number of updates: `amount` itself above 1, its share of `total` (rounded half up) up to 1."""
    return int(amount) if amount > 1 else math.floor(amount * total + 0.5)


def value_at(config: ScheduleConfig, step: int, total: int) -> float:
    """Return the value at `step` of a run of `total` updates; steps at or past `total` give the final value."""
    peak = config.peak
    start = peak if config.start is None else config.start
    end = peak if config.end is None else config.end
    warmup = updates(config.warmup, total)
    if step < warmup:
        to_peak = warmup - 1 if config.kind == "cosine-dinov2" else warmup
        return start + (peak - start) * (step / to_peak if to_peak else 0.0)
    if config.kind == "constant":
        return peak
    length = total - warmup - updates(config.tail, total)
    index = step - warmup
    if index >= length:
        return end if config.truncate == 0 or length <= 0 else value_at(config, warmup + length - 1, total)
    intervals = length if config.kind == "cosine-dinov2" else length - 1
    share = index / (intervals * (1 + config.truncate)) if intervals else 1.0
    if config.kind == "linear":
        return peak + (end - peak) * share
    return end + 0.5 * (peak - end) * (1 + math.cos(math.pi * share))


def scaled_learning_rate(base: float, batch_size: int, rule: str) -> float:
    """Return the peak learning rate of a batch of `batch_size` samples per update.

    linear-256: base·B/256 (DINO, MAE, FM-HCT); sqrt-1024: base·√(B/1024) (DINOv2, 3DINO); 4sqrt-1024: four times that
    (DINOv3); none: base itself.
    """
    if rule not in SCALING_RULES:
        raise ConfigError(f"learning_rate_rule {rule!r}: expected one of {', '.join(SCALING_RULES)}.")
    factors = {
        "none": 1.0,
        "linear-256": batch_size / 256,
        "sqrt-1024": math.sqrt(batch_size / 1024),
        "4sqrt-1024": 4 * math.sqrt(batch_size / 1024),
    }
    return base * factors[rule]


class Schedule:
    """All scheduled values of a run of `total` updates, by name."""

    def __init__(self, values: Mapping[str, ScheduleConfig], *, total: int, learning_rate_factor: float = 1.0) -> None:
        if "learning_rate" not in values:
            raise ConfigError("the schedules name no learning_rate; every run needs one.")
        self.values = dict(values)
        self.total = total
        self.learning_rate_factor = learning_rate_factor

    def at(self, step: int) -> dict[str, float]:
        """Return every value at `step`, and `last_layer_learning_rate`, which is 0 while that layer is frozen."""
        now = {name: value_at(config, step, self.total) for name, config in self.values.items()}
        now["learning_rate"] *= self.learning_rate_factor
        frozen = step < updates(self.values["learning_rate"].freeze, self.total)
        now["last_layer_learning_rate"] = 0.0 if frozen else now["learning_rate"]
        return now

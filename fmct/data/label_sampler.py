"""Which series a labelled draw shows, and what for: a lesion, a hard negative, the body anywhere, an unlabelled scan.

Pure functions of (seed, draw): kinds are dealt out in exact shares, and within a kind every epoch is a permutation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fmct.data.sample import Sample
from fmct.data.sampler import Sampler
from fmct.data.window_config import WindowsConfig
from fmct.errors import ConfigError, DataError

POSITIVE, HARD_NEGATIVE, UNIFORM, UNLABELLED = "positive", "hard_negative", "uniform", "unlabelled"


class DrawPlan(Protocol):
    """Says what a draw shows."""

    def __call__(self, draw: int) -> tuple[int, str]:
        """Return (number of the sample, kind of window)."""
        ...


@dataclass(frozen=True)
class Pool:
    """Samples that draws of one kind are taken from, by their numbers; weight: the pool's share of all draws."""

    kind: str
    members: tuple[int, ...]
    weight: float


class LabelSampler:
    """Maps a draw to (sample number, kind); `per_series` consecutive draws show the same sample."""

    def __init__(self, pools: Sequence[Pool], *, seed: int, per_series: int = 1) -> None:
        self.pools = list(pools)
        self.per_series = per_series
        lengths, weights = [len(pool.members) for pool in pools], [pool.weight for pool in pools]
        self._sampler = Sampler(lengths, weights=weights, seed=seed)

    def __call__(self, draw: int) -> tuple[int, str]:
        """Return the sample and the kind of window of a draw."""
        number, place = self._sampler(draw // self.per_series)
        pool = self.pools[number]
        return pool.members[place], pool.kind


@dataclass(frozen=True)
class EverySample:
    """`count` uniform windows of every sample, in order: draw d shows sample d // count."""

    count: int

    def __call__(self, draw: int) -> tuple[int, str]:
        """Return the sample and the kind of window of a draw."""
        return draw // self.count, UNIFORM


def pools_of(samples: Sequence[Sample], config: WindowsConfig, targets: Sequence[str], *, masks: bool) -> list[Pool]:
    """Return the pools of a split's samples by the configured shares; an epoch of a pool shows each member once.

    masks: whether the cohort has any; without, all labelled draws are uniform. balance: the positive and the negative
    series of that target are two pools of equal weight; series where it is unknown count as unlabelled. Raises
    ConfigError for an unknown target to balance, DataError where a share has no series to draw from.
    """
    shares = config.shares
    target = _balanced_target(config, targets)
    ready = [n for n, s in enumerate(samples) if s.labelled or s.pair is not None]
    if target is not None:
        ready = [n for n in ready if samples[n].labels[target] in (0.0, 1.0)]
    rest = [n for n in range(len(samples)) if n not in set(ready)]
    with_lesion = [n for n in ready if samples[n].mask is not None]
    judged = [n for n in ready if samples[n].has_mask]
    uniform = shares.uniform if masks else shares.uniform + shares.positive + shares.hard_negative
    pools = [*_balanced(samples, ready, UNIFORM, uniform, target), (UNLABELLED, rest, shares.unlabelled)]
    if masks:
        pools += [(POSITIVE, with_lesion, shares.positive)]
        pools += _balanced(samples, judged, HARD_NEGATIVE, shares.hard_negative, target)
    for kind, members, weight in pools:
        if weight > 0 and not members:
            raise DataError(
                f"windows.shares.{kind}={weight:g}: none of the {len(samples)} series of this split can be drawn so "
                f"(with a lesion in its mask: {len(with_lesion)}, lesions known: {len(judged)}, labelled: "
                f"{len(ready)}). Set this share to 0, or mend masks, labels or splits."
            )
    return [Pool(kind, tuple(members), weight) for kind, members, weight in pools if weight > 0]


def _balanced_target(config: WindowsConfig, targets: Sequence[str]) -> int | None:
    if config.balance and config.balance not in targets:
        raise ConfigError(f"windows.balance={config.balance}: no such target among {', '.join(targets) or 'none'}.")
    return targets.index(config.balance) if config.balance else None


def _balanced(
    samples: Sequence[Sample], members: list[int], kind: str, weight: float, target: int | None
) -> list[tuple[str, list[int], float]]:
    """Return one pool, or one of positives and one of negatives, each with half of the weight."""
    if target is None:
        return [(kind, members, weight)]
    return [(kind, [n for n in members if samples[n].labels[target] == value], weight / 2) for value in (1.0, 0.0)]

"""Batches of whole series as the features of their slabs, padded to the longest: what stage two learns from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fmct.data.label_sampler import UNIFORM, LabelSampler, Pool
from fmct.data.pretrain import DrawBatches
from fmct.data.sample import Sample
from fmct.errors import ConfigError, DataError

Features = Callable[[Sample], torch.Tensor]


@dataclass(frozen=True)
class SeriesBatch:
    """B series of one rank.

    features: (B, T, C, gh, gw) float32, slabs in z order, zeros behind the last; valid: (B, T) bool, which are slabs.
    labels: (B, 1), 0 or 1. draws: (B,) int64 on the CPU. entries: series ids.
    """

    features: torch.Tensor
    valid: torch.Tensor
    labels: torch.Tensor
    draws: torch.Tensor
    entries: list[str]

    def __len__(self) -> int:
        return len(self.entries)


def series_feature_batches(
    samples: Sequence[Sample],
    features_of: Features,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_draw: int = 0,
    positive: float | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[SeriesBatch]:
    """Yield batches without end, drawn from (seed, draw) as labelled windows are; series without a label are left out.

    features_of: gives a series' (T, C, gh, gw). positive: share of the draws that are positive, None for that of the
    series. Raises DataError when a class is missing, ConfigError for a share that cannot be.
    """
    plan = LabelSampler(_pools(samples, positive), seed=seed)
    for draws in DrawBatches(start_draw + rank * batch_size, batch_size * world_size, batch_size):
        chosen = [samples[plan(draw)[0]] for draw in draws]
        yield padded([features_of(sample) for sample in chosen], chosen, draws, torch.device(device))


def padded(
    features: Sequence[torch.Tensor], samples: Sequence[Sample], draws: Sequence[int], device: torch.device
) -> SeriesBatch:
    """Return series of different lengths as one batch."""
    longest = max(len(part) for part in features)
    table = torch.zeros((len(features), longest, *features[0].shape[1:]))
    valid = torch.zeros((len(features), longest), dtype=torch.bool)
    for number, part in enumerate(features):
        table[number, : len(part)] = part
        valid[number, : len(part)] = True
    return SeriesBatch(
        features=table.to(device),
        valid=valid.to(device),
        labels=torch.tensor([[sample.labels[0]] for sample in samples], device=device),
        draws=torch.tensor(list(draws), dtype=torch.int64),
        entries=[sample.entry.id for sample in samples],
    )


def _pools(samples: Sequence[Sample], positive: float | None) -> list[Pool]:
    members = {label: tuple(n for n, s in enumerate(samples) if s.labels[0] == label) for label in (1.0, 0.0)}
    if not all(members.values()):
        raise DataError(
            f"series: of {len(samples)} in the split, {len(members[1.0])} are positive and {len(members[0.0])} "
            "negative; a reader of series needs both classes. Mend the labels or splits, or raise budget.patients."
        )
    if positive is None:
        return [Pool(UNIFORM, tuple(sorted((*members[1.0], *members[0.0]))), 1.0)]
    if not 0 < positive < 1:
        raise ConfigError(f"series.positive={positive:g}: a share of the draws, above 0 and below 1, or null.")
    return [Pool(UNIFORM, members[1.0], positive), Pool(UNIFORM, members[0.0], 1 - positive)]

"""The watch over aligned features: agreement is cheapest when every token has the same feature."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fmct import distributed
from fmct.losses.alignment import unit_features
from fmct.losses.precision import full_precision
from fmct.losses.term import flags
from fmct.losses.tokens import valid_tokens

LEAST_SPREAD = 0.1  # of √C times the mean deviation: random features have 1, a constant field 0


class AlignmentMonitor:
    """The spread of each phase's features over the tokens of a volume, and an alarm where it is lost.

    The spread is √C times the mean over channels of the standard deviation over a volume's valid tokens of unit
    features, so that the definition's limit of 0.1/√C on that deviation is 0.1. `patience`: low spreads in a row
    before the alarm.
    """

    def __init__(self, *, least: float = LEAST_SPREAD, patience: int = 1) -> None:
        self.least = least
        self.patience = patience
        self.last: dict[str, float] = {}
        self.streaks: dict[str, int] = {}

    def observe(
        self, features: Mapping[str, Tensor], *, valid: Tensor | None = None, has_pair: Tensor | None = None
    ) -> list[str]:
        """Take in the features (B, C, gd, gh, gw) of each phase by name; return the sentences of alarms that stand.

        The same on every rank; a collective. valid, has_pair: as for the alignment. Without any volume that has two
        valid tokens, on any rank, nothing changes.
        """
        sums = torch.stack([_spreads(field, valid, has_pair) for field in features.values()])
        totals = distributed.sum_over_ranks(sums).tolist()
        for name, (total, volumes) in zip(features, totals, strict=True):
            if volumes:
                self.last[name] = total / volumes
                self.streaks[name] = self.streaks.get(name, 0) + 1 if self.last[name] < self.least else 0
        return [self._sentence(name) for name, streak in self.streaks.items() if streak >= self.patience]

    def health(self) -> dict[str, Tensor | float]:
        """Return the last spread of each phase, as `alignment_spread_NAME`."""
        return {f"alignment_spread_{name}": value for name, value in self.last.items()}

    def state(self) -> dict[str, dict[str, float]]:
        """Return the run state, free of the number of ranks."""
        return {"last": dict(self.last), "streaks": {name: float(n) for name, n in self.streaks.items()}}

    def load(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Take back what `state` gave."""
        self.last = {name: float(value) for name, value in state["last"].items()}
        self.streaks = {name: int(value) for name, value in state["streaks"].items()}

    def _sentence(self, name: str) -> str:
        return (
            f"alignment-collapse: the {name} features are almost the same at every token (spread "
            f"{self.last[name]:.2g}, expected above {self.least:g}); lower the weight of the alignment or lengthen its "
            "ramp"
        )


@torch.no_grad()
def _spreads(features: Tensor, valid: Tensor | None, has_pair: Tensor | None) -> Tensor:
    """Return (2,) fp64: the sum of the spreads of the volumes with at least two valid tokens, and their number."""
    with full_precision(features):
        tokens = valid_tokens(valid, features) & flags(has_pair, len(features), features)[:, None]
        unit = unit_features(features, tokens).flatten(2).double()
        number = tokens.sum(1).double()
        counted = number >= 2
        share = (tokens / number.clamp(min=1)[:, None])[:, None]
        mean = (unit * share).sum(2, keepdim=True)
        deviation = ((unit - mean).square() * share).sum(2).sqrt().mean(1)
        spread = deviation * math.sqrt(features.shape[1])
        return torch.stack([spread.masked_fill(~counted, 0.0).sum(), counted.sum().double()])

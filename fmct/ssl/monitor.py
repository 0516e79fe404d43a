"""The watch over collapse: measures in every log line, and named alarms when a run has gone bad."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmct import distributed
from fmct.errors import ConfigError
from fmct.ssl.ema import relative_distance
from fmct.ssl.health import feature_spread, mean_cosine, rank_me
from fmct.ssl.history import FeatureHistory, TargetHistory

ALARMS = {
    "uniform-collapse": "the teacher's targets say nothing: their entropy stays near ln K, and so does the loss",
    "point-collapse": "the teacher puts every image on the same prototypes",
    "rank-collapse": "the features span almost no dimension",
    "constant-features": "all images have the same feature",
}


_RECENT_ROWS = 16
_MEASURE_OF = {
    "uniform-collapse": "teacher_entropy",
    "point-collapse": "marginal_entropy",
    "rank-collapse": "rank_me",
    "constant-features": "feature_std",
}


@dataclass(frozen=True)
class HealthConfig:
    """When collapse is measured and when it raises an alarm. Whether an alarm ends the run is for the loop to say.

    every: forward passes between two full measurements; log lines in between repeat the last. grace: forward passes
    before any alarm, as a young run is uniform of itself. patience: bad measurements in a row that make an alarm.
    feature_rows: features kept for RankMe, 0 for twice the width.
    marginal_rows, usage_rows: targets after which an older one counts half in the marginal and in the usage.
    The thresholds: targets' entropy over ln K above `uniform_entropy`, marginal entropy over ln K below
    `point_entropy`, RankMe below `rank`, feature spread (1 is isotropic) below `spread`.
    """

    every: int = 50
    grace: int = 1000
    patience: int = 3
    feature_rows: int = 0
    marginal_rows: int = 1024
    usage_rows: int = 16384
    uniform_entropy: float = 0.99
    point_entropy: float = 0.1
    rank: float = 2.0
    spread: float = 0.01


class HealthMonitor:
    """Collapse health of a run: its measures, its alarms, and its buffers as run state.

    num_prototypes: of each kind of target, such as {"cls": K, "patch": K}. width: of the features.
    """

    def __init__(self, config: HealthConfig, *, num_prototypes: Mapping[str, int], width: int) -> None:
        if min(config.every, config.patience, config.marginal_rows, config.usage_rows) < 1:
            raise ConfigError("health: every, patience, marginal_rows and usage_rows are at least 1.")
        self.config = config
        self.targets = {
            kind: TargetHistory(k, marginal_rows=config.marginal_rows, usage_rows=config.usage_rows)
            for kind, k in num_prototypes.items()
        }
        self.features = FeatureHistory(width, config.feature_rows or 2 * width)
        self.forwards = 0
        self.streaks = dict.fromkeys(ALARMS, 0)
        self.last: dict[str, float] = {}

    def observe_targets(self, kind: str, probabilities: Tensor) -> Tensor:
        """Take in (M, K) targets; return their mean entropy in nats over all ranks. A collective."""
        return self.targets[kind].observe(probabilities)

    def observe_features(self, features: Tensor) -> None:
        """Take in (B, G, D) features. A collective."""
        self.features.observe(features)

    def measure(self, teacher: nn.Module, student: nn.Module) -> list[str]:
        """Count a forward pass and, every so often, measure and judge; return the sentences of new alarms.

        The same on every rank. A collective.
        """
        self.forwards += 1
        if (self.forwards - 1) % self.config.every:
            return []
        measured = self._measure(teacher, student)
        # Ranks agree bit for bit, or they would stop apart.
        vector = torch.stack([value.double() for value in measured.values()])
        agreed = distributed.max_over_ranks(vector).tolist()
        self.last = dict(zip(measured, agreed, strict=True))
        return self._judge()

    def health(self) -> dict[str, Tensor | float]:
        """Return the entropy of this step's targets and the last value of every other measure, by name."""
        health: dict[str, Tensor | float] = dict(self.last)
        for kind, history in self.targets.items():
            if _name("marginal_entropy", kind) in self.last:
                health[_name("teacher_entropy", kind)] = history.entropy
        health["alarms"] = float(len(self.active))
        return health

    @property
    def active(self) -> list[str]:
        """The names of the alarms that stand."""
        return [name for name, streak in self.streaks.items() if streak >= self.config.patience]

    def to(self, device: torch.device) -> None:
        """Move the buffers to `device`."""
        for part in (self.features, *self.targets.values()):
            part.to(device)

    def state(self) -> dict[str, Any]:
        """Return the run state, free of the number of ranks."""
        return {
            "forwards": self.forwards,
            "streaks": dict(self.streaks),
            "last": dict(self.last),
            "features": self.features.state(),
            "targets": {kind: history.state() for kind, history in self.targets.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.forwards = int(state["forwards"])
        self.streaks = {name: int(state["streaks"][name]) for name in ALARMS}
        self.last = {name: float(value) for name, value in state["last"].items()}
        self.features.load(state["features"])
        for kind, history in self.targets.items():
            history.load(state["targets"][kind])

    def _measure(self, teacher: nn.Module, student: nn.Module) -> dict[str, Tensor]:
        # Spread and cosine are those of one moment: over a long history a moving encoder looks spread out.
        recent = self.features.recent(_RECENT_ROWS)
        measured = {
            "rank_me": rank_me(self.features.filled),
            "feature_std": feature_spread(recent),
            "mean_cosine": mean_cosine(recent),
            "ema_distance": relative_distance(teacher, student),
        }
        for kind, history in self.targets.items():
            measured |= {_name(measure, kind): value for measure, value in history.measures().items()}
        return measured

    def _judge(self) -> list[str]:
        """Count bad measurements in a row; return a sentence for each alarm that begins to stand."""
        before = set(self.active)
        for name in ALARMS:
            bad = self.forwards > self.config.grace and self._is_bad(name)
            self.streaks[name] = self.streaks[name] + 1 if bad else 0
        return [
            f"{name} after {self.forwards} forward passes: {ALARMS[name]} ({self._numbers(name)})."
            for name in self.active
            if name not in before
        ]

    def _is_bad(self, name: str) -> bool:
        limits = self.config
        if name == "uniform-collapse":
            return any(value > limits.uniform_entropy for value in self._over_kinds("teacher_entropy"))
        if name == "point-collapse":
            return any(value < limits.point_entropy for value in self._over_kinds("marginal_entropy"))
        if not self.features.full:
            return False
        if name == "rank-collapse":
            return self.last["rank_me"] < limits.rank
        return self.last["feature_std"] < limits.spread

    def _over_kinds(self, measure: str) -> list[float]:
        names = [_name(measure, kind) for kind in self.targets]
        return [self.last[name] for name in names if name in self.last]

    def _numbers(self, name: str) -> str:
        measure = _MEASURE_OF[name]
        names = [_name(measure, kind) for kind in self.targets] if measure.endswith("entropy") else [measure]
        return ", ".join(f"{key} {self.last[key]:.4g}" for key in names if key in self.last)


def _name(measure: str, kind: str) -> str:
    """Return the name in the log: CLS targets have no suffix."""
    return measure if kind == "cls" else f"{measure}_{kind}"

"""Intravenous contrast from tiles along the body: is there any, which phase, how many seconds after the injection."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmct.errors import ConfigError
from fmct.models.adaptation import EncoderHolder
from fmct.models.bag import MilHead
from fmct.models.classifier import FEATURES
from fmct.models.vision_transformer import VisionTransformer
from fmct.precision import without_autocast

PHASES = ("native", "arterial", "portal", "delayed")
POOLINGS = ("attention", "mean")
MOST_SECONDS = 900.0
_HALF_MINUTE = 30.0  # early seconds matter more: the time output is log(1 + seconds / 30)


class ContrastOutput(NamedTuple):
    """logits (bags, T): of presence, then of each phase against the rest; values (bags, V): what they come from.

    attention: (M,) weights over the rows of each bag; features: (M, E') of the rows.
    """

    logits: Tensor
    values: Tensor
    attention: Tensor
    features: Tensor


@dataclass(frozen=True)
class ContrastNetworkConfig:
    """A network for contrast. See ContrastNetwork for what each key does."""

    pooling: str = "attention"
    features: str = "cls+mean"
    hidden: int = 128
    phase: bool = True
    seconds: bool = False


class ContrastHead(MilHead):
    """A bag's presence, and with `phase` and `seconds` its phase and time, by one pooling of its rows.

    Values: a presence logit, four phase logits (softmax over PHASES), log(1 + seconds / 30). What `forward` returns
    as logits are log-odds each: of a phase log p − log(1 − p) with p of the softmax, so that a sigmoid gives p.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        hidden: int = 128,
        attention: bool = True,
        phase: bool = True,
        seconds: bool = False,
    ) -> None:
        super().__init__(embed_dim, 1 + len(PHASES) * phase + seconds, hidden, attention=attention)
        self.phase, self.seconds = phase, seconds

    def values(self, rows: Tensor, bags: Tensor, num_bags: int) -> tuple[Tensor, Tensor]:
        """Return values (num_bags, V) and weights (M,) of (M, E) rows, in float32 whatever surrounds it."""
        with without_autocast(rows.device):
            return super().forward(rows.float(), bags, num_bags)

    def forward(self, rows: Tensor, bags: Tensor, num_bags: int) -> tuple[Tensor, Tensor]:
        """Return logits (num_bags, T) and weights (M,) of (M, E) rows; see MilHead.forward for errors."""
        values, weights = self.values(rows, bags, num_bags)
        return self.logits(values), weights

    def logits(self, values: Tensor) -> Tensor:
        """Return (bags, T) log-odds of (bags, V) values."""
        if not self.phase:
            return values[:, :1]
        phases = self.phases(values)
        others = [torch.cat([phases[:, :k], phases[:, k + 1 :]], dim=1).logsumexp(1) for k in range(len(PHASES))]
        return torch.cat([values[:, :1], phases - torch.stack(others, dim=1)], dim=1)

    def phases(self, values: Tensor) -> Tensor:
        """Return the (bags, 4) phase logits of (bags, V) values."""
        return values[:, 1 : 1 + len(PHASES)]

    def time(self, values: Tensor) -> Tensor:
        """Return (bags,) log times (see `log_time`) of (bags, V) values."""
        return values[:, -1]

    def shares(self, values: Tensor) -> dict[str, float]:
        """Return {phase: probability} of one bag's values (V,); {} without phases."""
        if not self.phase:
            return {}
        return dict(zip(PHASES, self.phases(values[None])[0].softmax(0).tolist(), strict=True))

    def told(self, values: Tensor) -> dict[str, Any]:
        """Return what is said of one bag's values (V,) in words: phase, the probability of it, and seconds."""
        found: dict[str, Any] = {}
        if self.phase:
            shares = self.shares(values)
            best = max(shares, key=lambda name: shares[name])
            found |= {"phase": best, "phase_probability": shares[best]}
        if self.seconds:
            seconds = _HALF_MINUTE * self.time(values[None]).clamp(0.0, 10.0).expm1()
            found["seconds"] = min(float(seconds), MOST_SECONDS)
        return found


class ContrastNetwork(EncoderHolder):
    """An encoder over tiles, and a ContrastHead over the tiles of a series.

    Args:
        encoder: any encoder with the VisionTransformer's forward pass.
        pooling: "attention" (gated, learned from series labels alone) or "mean".
        features: of a tile: "cls", "mean" of its patch tokens, or both side by side.
        hidden: width of the attention.
        phase, seconds: whether there are outputs for them.

    Raises ConfigError for impossible settings.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        pooling: str = "attention",
        features: str = "cls+mean",
        hidden: int = 128,
        phase: bool = True,
        seconds: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS or features not in FEATURES or hidden < 1:
            raise ConfigError(
                f"contrast network: expected pooling among {', '.join(POOLINGS)}, features among {', '.join(FEATURES)} "
                f"and a positive hidden; got {pooling!r}, {features!r} and {hidden}."
            )
        self.encoder = encoder
        self.features = features
        width = encoder.embed_dim * (2 if features == "cls+mean" else 1)
        self.head = ContrastHead(width, hidden=hidden, attention=pooling == "attention", phase=phase, seconds=seconds)

    @property
    def targets(self) -> tuple[str, ...]:
        """The name of each logit."""
        return targets_of(self.head.phase)

    def forward(
        self,
        x: Tensor,
        spacing: Tensor | None = None,
        bags: Tensor | None = None,
        *,
        num_bags: int | None = None,
        drop_path_keys: Tensor | None = None,
    ) -> ContrastOutput:
        """Return the output for (B, C, D, H, W) tiles with `spacing` (B, 3) mm.

        bags: (B,) int64, whose series a tile is of; None makes every tile a bag of its own.
        """
        tokens = self.encoder(x, spacing, drop_path_keys=drop_path_keys)
        parts = {"cls": tokens.cls, "mean": tokens.patches.mean(1)}
        rows = torch.cat([parts[name] for name in self.features.split("+")], dim=1)
        bags = torch.arange(len(rows), device=rows.device) if bags is None else bags
        values, weights = self.head.values(rows, bags, int(bags.max()) + 1 if num_bags is None else num_bags)
        return ContrastOutput(self.head.logits(values), values, weights, rows)


def log_time(seconds: Tensor) -> Tensor:
    """Return log(1 + seconds / 30), in which an error early after the injection weighs more than a late one."""
    return (seconds / _HALF_MINUTE).log1p()


def targets_of(phase: bool) -> tuple[str, ...]:
    """Return the names of the logits: contrast, then phase_native and so on where phases are told."""
    return ("contrast", *(f"phase_{name}" for name in PHASES if phase))

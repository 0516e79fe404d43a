"""The Gram teacher: an earlier EMA teacher, kept still, whose patch similarities anchor the student's (DINOv3)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmct.errors import ConfigError
from fmct.losses.gram import gram_loss
from fmct.ssl.ema import copy_weights


@dataclass(frozen=True)
class GramConfig:
    """How patch similarities are anchored; the weight is `weights.gram`.

    source: `snapshot`, a copy of the EMA teacher refreshed every `refresh_every` updates from update `first_refresh`
    on, at most `max_refreshes` times (0: no limit); or `ema`, the teacher's own features of this step, which costs
    nothing more. level and negatives: see `fmct.losses.gram.gram_loss`.
    """

    source: str = "snapshot"
    level: str = "image"
    negatives: str = "keep"
    first_refresh: int = 0
    refresh_every: int = 10_000
    max_refreshes: int = 0


class GramTeacher:
    """The anchor's encoder and its refresh schedule. Before the first refresh it is the encoder training began from."""

    def __init__(self, encoder: nn.Module, config: GramConfig) -> None:
        if config.source not in ("snapshot", "ema"):
            raise ConfigError(f"gram.source {config.source!r}: expected snapshot or ema.")
        if config.refresh_every < 1 or config.first_refresh < 0 or config.max_refreshes < 0:
            raise ConfigError("gram: refresh_every is at least 1, first_refresh and max_refreshes are not negative.")
        self.config = config
        self.refreshes = 0
        self.encoder: nn.Module | None = None
        if config.source == "snapshot":
            self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move the snapshot to `device`."""
        if self.encoder is not None:
            self.encoder.to(device)

    def loss(self, student: Tensor, teacher: Tensor | None, views: Tensor, spacing: Tensor) -> Tensor:
        """Return the Gram loss of student patches (B, N, E) against the anchor's of the same unmasked views.

        teacher: the EMA teacher's patches (B, N, E), used when the source is `ema`.
        """
        if self.encoder is not None:
            with torch.no_grad():
                teacher = self.encoder(views, spacing).patches
        assert teacher is not None
        level, negatives = self.config.level, self.config.negatives
        return gram_loss(student, teacher, level=level, negatives=negatives)  # type: ignore[arg-type]

    def after_update(self, updates: int, teacher_encoder: nn.Module) -> None:
        """Refresh the snapshot from the EMA teacher when the schedule says so; `updates` counts from 1."""
        since = updates - self.config.first_refresh
        spent = self.config.max_refreshes and self.refreshes >= self.config.max_refreshes
        if self.encoder is not None and not spent and since >= 0 and since % self.config.refresh_every == 0:
            copy_weights(self.encoder, teacher_encoder)
            self.refreshes += 1

    def reset(self, encoder: nn.Module) -> None:
        """Begin again from `encoder`, as at the start."""
        self.refreshes = 0
        if self.encoder is not None:
            copy_weights(self.encoder, encoder)

    def state(self) -> dict[str, Any]:
        """Return the run state: the number of refreshes done, and the snapshot."""
        weights = {} if self.encoder is None else self.encoder.state_dict()
        return {"refreshes": self.refreshes, "encoder": weights}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.refreshes = int(state["refreshes"])
        if self.encoder is not None:
            self.encoder.load_state_dict(state["encoder"])

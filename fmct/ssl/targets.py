"""What the teacher's logits become: target probabilities, by Sinkhorn-Knopp or by a centred softmax."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fmct.errors import ConfigError
from fmct.losses.centring import Centre
from fmct.losses.dino import sinkhorn_knopp

Method = Literal["sinkhorn", "centring"]


class Targets:
    """Target probabilities of one head. Sinkhorn-Knopp has no state; centring has a centre, which is run state."""

    def __init__(
        self, num_prototypes: int, *, method: Method = "sinkhorn", iterations: int = 3, centre_momentum: float = 0.9
    ) -> None:
        if method not in ("sinkhorn", "centring"):
            raise ConfigError(f"targets.method {method!r}: expected sinkhorn or centring.")
        self.iterations = iterations
        self.centre = Centre(num_prototypes, momentum=centre_momentum) if method == "centring" else None

    def to(self, device: torch.device) -> None:
        """Move the state to `device`."""
        if self.centre is not None:
            self.centre.to(device)

    def __call__(self, logits: Tensor, temperature: float) -> Tensor:
        """Return (M, K) probabilities of this rank's (M, K) teacher logits; M may be zero, every rank takes part."""
        if self.centre is None:
            return sinkhorn_knopp(logits, temperature, self.iterations)
        self.centre.observe(logits)
        return self.centre.targets(logits, temperature)

    def after_update(self) -> None:
        """Move the centre, if there is one, with what was seen since the last update. A collective."""
        if self.centre is not None:
            self.centre.apply()

    def state(self) -> dict[str, Any]:
        """Return the run state."""
        return {} if self.centre is None else self.centre.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        if self.centre is not None:
            self.centre.load(dict(state))

"""A bank of lesion prototypes of earlier samples, against which samples without lesion can be held."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fmct import distributed


class ForegroundBank:
    """At most `size` unit prototypes (C = `width`) of one phase, the same on every rank; run state, not a parameter.

    New prototypes fill the slots in turn; a slot that is already filled moves to `momentum` · old + (1 − momentum) ·
    new, made unit again. The bank in force at an update was filled by those before it: `observe` collects, `apply`
    moves. fmct's own definition.
    """

    def __init__(self, width: int, *, size: int = 256, momentum: float = 0.9) -> None:
        self.momentum = momentum
        self.slots = torch.zeros(size, width)
        self.seen = 0
        self._pending: list[Tensor] = []

    def prototypes(self) -> Tensor:
        """Return the filled slots, (n, C) fp32 on the CPU, n ≤ size."""
        return self.slots[: min(self.seen, len(self.slots))]

    def observe(self, prototypes: Sequence[Tensor]) -> None:
        """Collect unit prototypes, each (C,), for the next `apply`."""
        self._pending += [prototype.detach().float().cpu() for prototype in prototypes]

    def apply(self) -> None:
        """Take in what all ranks collected, in the order of ranks. A collective."""
        mine, self._pending = self._pending, []
        for prototype in (row for rows in distributed.gather_objects(mine) for row in rows):
            slot = self.seen % len(self.slots)
            if self.seen >= len(self.slots):
                mixed = self.momentum * self.slots[slot] + (1 - self.momentum) * prototype
                self.slots[slot] = functional.normalize(mixed, dim=0)
            else:
                self.slots[slot] = prototype
            self.seen += 1

    def state(self) -> dict[str, Any]:
        """Return the state between updates, free of the number of ranks."""
        return {"slots": self.slots.clone(), "seen": self.seen}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.slots.copy_(state["slots"])
        self.seen = int(state["seen"])
        self._pending = []

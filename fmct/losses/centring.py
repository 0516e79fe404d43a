"""Centred softmax targets: the alternative to Sinkhorn balancing (Caron et al., 2021). The centre is explicit state."""

import torch
from torch import Tensor

from fmct import distributed
from fmct.losses.precision import as_float, full_precision


class Centre:
    """A running mean of teacher logits over all ranks, subtracted before the softmax.

    The centre in force at an update was moved by the batch before: `observe` only collects, `apply` moves.
    """

    def __init__(self, num_prototypes: int, *, momentum: float = 0.9, device: torch.device | None = None) -> None:
        self.momentum = momentum
        self.value = torch.zeros(num_prototypes, device=device)
        # One row more than prototypes: the number of samples, so that both travel in one all-reduce.
        self._pending = torch.zeros(num_prototypes + 1, dtype=torch.float64, device=device)

    def to(self, device: torch.device) -> None:
        """Move the state to `device`."""
        self.value, self._pending = self.value.to(device), self._pending.to(device)

    @torch.no_grad()
    def targets(self, logits: Tensor, temperature: float) -> Tensor:
        """Return softmax((logits − centre) / temperature), (M, K) probabilities from (M, K) logits."""
        with full_precision(logits):
            return torch.softmax((as_float(logits) - self.value) / temperature, dim=-1)

    @torch.no_grad()
    def observe(self, logits: Tensor) -> None:
        """Collect (M, K) logits for the next `apply`; M may be zero. Rows that are not finite are left out."""
        rows = logits.double()
        finite = rows.isfinite().all(dim=1, keepdim=True)
        self._pending[:-1] += torch.where(finite, rows, 0.0).sum(0)
        self._pending[-1] += finite.sum()

    @torch.no_grad()
    def apply(self) -> None:
        """Move the centre to momentum · centre + (1 − momentum) · mean of what all ranks collected. A collective."""
        total = distributed.sum_over_ranks(self._pending)
        mean = (total[:-1] / total[-1].clamp(min=1)).to(self.value.dtype)
        weight = (1 - self.momentum) * (total[-1] > 0).to(self.value.dtype)
        self.value.lerp_(mean, weight)
        self._pending.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the state between updates, free of the number of ranks."""
        return {"value": self.value}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.value.copy_(state["value"])
        self._pending.zero_()

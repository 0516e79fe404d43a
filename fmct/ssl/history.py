"""What the watch over collapse remembers: recent targets of one head, and recent features. Both are run state."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fmct import distributed
from fmct.row_blocks import row_blocks
from fmct.ssl.health import entropy, perplexity


class TargetHistory:
    """What one head's targets looked like lately, over all ranks. Half-lives are in target rows."""

    def __init__(self, num_prototypes: int, *, marginal_rows: int, usage_rows: int) -> None:
        self.num_prototypes = num_prototypes
        self.marginal_rows, self.usage_rows = marginal_rows, usage_rows
        self.marginal = torch.zeros(num_prototypes, dtype=torch.float64)
        self.usage = torch.zeros(num_prototypes, dtype=torch.float64)
        self.entropy = torch.ones((), dtype=torch.float64)

    @torch.no_grad()
    def observe(self, probabilities: Tensor) -> Tensor:
        """Take in this rank's (M, K) targets and return their mean entropy in nats over all ranks. A collective.

        Rows that are not finite are left out; M may be zero.
        """
        k = self.num_prototypes
        parts = torch.zeros(2 * k + 2, dtype=torch.float64, device=probabilities.device)
        for block in row_blocks(probabilities):
            finite = probabilities[block].sum(1).isfinite()
            rows = probabilities[block].masked_fill(~finite[:, None], 0.0)
            parts[:k] += rows.sum(0)
            parts[k : 2 * k].scatter_add_(0, rows.argmax(1), finite.double())
            parts[-2] += entropy(rows).double().sum()
            parts[-1] += finite.sum()
        total = distributed.sum_over_ranks(parts)
        number = total[-1]
        self.marginal.mul_(0.5 ** (number / self.marginal_rows)).add_(total[:k])
        self.usage.mul_(0.5 ** (number / self.usage_rows)).add_(total[k : 2 * k])
        mean = total[-2] / number.clamp(min=1)
        self.entropy = torch.where(number > 0, mean / math.log(k), self.entropy)
        return mean

    def measures(self) -> dict[str, Tensor]:
        """Return the entropy over ln K of the last targets, the same of their recent mean, and the prototypes' usage.

        Empty as long as no target was seen (no token has been masked yet). The usage is the perplexity of the winning
        prototypes over the largest it could be: K or the rows remembered.
        """
        if not self.marginal.any():
            return {}
        mean = self.marginal / self.marginal.sum().clamp(min=1e-12)
        most = self.usage.sum().clamp(min=1.0, max=float(self.num_prototypes))
        return {
            "teacher_entropy": self.entropy,
            "marginal_entropy": entropy(mean) / math.log(self.num_prototypes),
            "prototype_usage": perplexity(self.usage) / most,
        }

    def to(self, device: torch.device) -> None:
        """Move the state to `device`."""
        self.marginal, self.usage = self.marginal.to(device), self.usage.to(device)
        self.entropy = self.entropy.to(device)

    def state(self) -> dict[str, Any]:
        """Return the run state."""
        return {"marginal": self.marginal, "usage": self.usage, "entropy": self.entropy}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.marginal.copy_(state["marginal"])
        self.usage.copy_(state["usage"])
        self.entropy = state["entropy"].to(self.entropy)


class FeatureHistory:
    """The last n features of all ranks, fp32, in the order of their samples."""

    def __init__(self, width: int, rows: int) -> None:
        self.rows = torch.zeros(rows, width)
        self.seen = 0
        self.latest = 0

    @property
    def full(self) -> bool:
        """Whether every row has been written."""
        return self.seen >= len(self.rows)

    @property
    def filled(self) -> Tensor:
        """The rows written so far, (≤ n, D)."""
        return self.rows[: min(self.seen, len(self.rows))]

    def recent(self, least: int) -> Tensor:
        """Return the rows of the last batch of all ranks, or the last `least` where it had fewer, as far as kept."""
        number = min(max(self.latest, least), self.seen, len(self.rows))
        return self.rows[torch.arange(self.seen - number, self.seen, device=self.rows.device) % len(self.rows)]

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Take in (B, G, D) features of this rank's samples, B equal on all ranks. A collective.

        A feature that is not finite is written as zeros.
        """
        new = distributed.gather(features.float()).flatten(0, 1)
        new = torch.where(new.isfinite().all(1, keepdim=True), new, 0.0)
        kept = min(len(new), len(self.rows))
        position = torch.arange(self.seen + len(new) - kept, self.seen + len(new), device=new.device) % len(self.rows)
        self.rows[position] = new[len(new) - kept :]
        self.seen += len(new)
        self.latest = len(new)

    def to(self, device: torch.device) -> None:
        """Move the buffer to `device`."""
        self.rows = self.rows.to(device)

    def state(self) -> dict[str, Any]:
        """Return the run state."""
        return {"rows": self.rows, "seen": self.seen, "latest": self.latest}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.rows.copy_(state["rows"])
        self.seen, self.latest = int(state["seen"]), int(state["latest"])

"""What the downstream tasks share: a network as the only state, and a loss that is a weighted sum of terms."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fmct.errors import CheckpointError
from fmct.losses.term import Term
from fmct.models.adaptation import EncoderHolder
from fmct.train.task import TaskOutput


class SupervisedTask(nn.Module):
    """A task around `network`. What of it trains was said before (fmct.models.adaptation.adapt)."""

    def __init__(self, network: EncoderHolder) -> None:
        super().__init__()
        self.network = network

    def after_update(self, values: Mapping[str, float]) -> None:
        """Do nothing: there is no teacher to move."""

    def run_state(self) -> dict[str, Any]:
        """Return what there is beside the parameters."""
        return {}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `run_state` gave. Raises CheckpointError for the state of another task."""
        if state:
            raise CheckpointError(
                f"the checkpoint holds {', '.join(state)}, which {type(self).__name__} does not know: it is another "
                "task's. Choose another output=."
            )


def weighted(
    terms: Mapping[str, Term],
    weights: Mapping[str, float],
    *,
    samples: Sequence[str],
    health: Mapping[str, Tensor | float] | None = None,
    alarms: Sequence[str] = (),
    idle: Tensor | None = None,
) -> TaskOutput:
    """Return Σ weight · term with each term's value and count for the log (`loss/NAME`, `count/NAME`).

    idle: a zero that leads gradients of zero to parameters which this batch leaves out (see DualPhaseOutput).
    """
    loss = torch.stack([weights[name] * term.loss for name, term in terms.items()]).sum()
    return TaskOutput(
        loss=loss if idle is None else loss + idle,
        terms={name: term.loss.detach() for name, term in terms.items()},
        health={**(health or {}), **{f"count/{name}": term.count for name, term in terms.items()}},
        samples=list(samples),
        alarms=list(alarms),
    )

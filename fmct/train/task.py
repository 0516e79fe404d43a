"""Task: what is trained. A module whose forward turns a batch into a loss; the loop and the engines know nothing else.

A task is a `torch.nn.Module` with three more methods, the protocol below. Its registered parameters are what the
optimiser steps and the checkpoint saves. Whatever else the run needs (a teacher, centres, counters) is run state:
kept outside the registered parameters and buffers, given out and taken back whole by `run_state` and `load_run_state`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass
class TaskOutput:
    """What one forward of a task gives.

    loss: scalar with gradient: the mean over this rank's samples, of which the engine averages the gradient over ranks
    and over accumulation steps. terms: unweighted scalar of each loss term, logged as `loss/NAME`. health: scalars
    that say whether training is sane, logged under their own names. terms and health have the same keys on every
    rank; the mean over ranks is logged. samples: an id per sample of this rank, named when something goes wrong.
    alarms: sentences, the same on every rank, such as a collapse; the run warns, and stops when told to.
    """

    loss: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    health: Mapping[str, Tensor | float] = field(default_factory=dict)
    samples: Sequence[str] = ()
    alarms: Sequence[str] = ()


@runtime_checkable
class Task(Protocol):
    """A trainable method. Implemented by nn.Modules; see the module's text."""

    def __call__(self, batch: Any, values: Mapping[str, float]) -> TaskOutput:
        """Return the loss of this rank's `batch` under the scheduled `values` of this step."""
        ...

    def after_update(self, values: Mapping[str, float]) -> None:
        """Do what follows an optimiser update, such as moving the teacher. Not called for a skipped update."""
        ...

    def run_state(self) -> dict[str, Any]:
        """Return all state beside the parameters, the same on every rank.

        Nested dicts of tensors and of JSON values (numbers, strings, booleans, None, lists); no key contains '/'.
        """
        ...

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `run_state` gave, in place. Raises fmct.errors.CheckpointError when it does not fit."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the (name, parameter) pairs to be trained, as nn.Module does."""
        ...

"""Contrast from slices, as published: binary cross-entropy on slices that have their scan's label, and early stopping.

The kind "contrast_paper" of fmct.tasks.kinds. Ye et al., Radiology: Artificial Intelligence 2022;4(3):e210285. The
weights of the best validation loss are kept beside those that train, in every checkpoint, and are what is exported.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmct import distributed
from fmct.config import build, plain
from fmct.data.slice_batches import SliceBatch
from fmct.errors import ArtefactError, CheckpointError, ConfigError
from fmct.losses.classification import binary_loss
from fmct.models.slice_networks import SliceNetwork, SliceNetworkConfig, build_slice_network
from fmct.shapes import TripleF
from fmct.train.task import TaskOutput

AGGREGATES = ("mean", "fraction")
SLICE_THRESHOLD = 0.5
_CERTAIN = 1e-15  # a scan's probability is this far from 0 and 1, so that its logit is finite


def scan_probability(slices: np.ndarray, how: str) -> float:
    """Return a scan's probability from its slices' (S,) ones, S > 0.

    mean: their mean. fraction: the share of slices with at least ½. Slices in another order change nothing.
    """
    p = np.sort(np.asarray(slices, dtype=np.float64))
    if how not in AGGREGATES or not len(p):
        raise ConfigError(f"aggregate: one of {', '.join(AGGREGATES)}, over at least one slice; got {how!r}, {len(p)}.")
    return float(p.mean()) if how == "mean" else float((p >= SLICE_THRESHOLD).mean())


def scan_logit(probability: float) -> float:
    """Return the logit of a scan's probability, finite also for 0 and 1."""
    p = min(max(probability, _CERTAIN), 1 - _CERTAIN)
    return math.log(p) - math.log1p(-p)


class ContrastPaper(nn.Module):
    """Train a slice network. Every `epoch` updates `validate(network)` gives its loss on the validation slices.

    keep: `best` keeps a copy of the weights whenever that loss is lowest, `last` none. After `patience` looks without a
    lower loss (0: never) the task is `finished`. template: (D, H, W) int16, what scans are registered to.
    """

    def __init__(
        self,
        network: SliceNetwork,
        template: Tensor,
        *,
        validate: Callable[[SliceNetwork], float],
        epoch: int,
        patience: int = 20,
        keep: str = "best",
    ) -> None:
        super().__init__()
        if keep not in ("best", "last") or patience < 0 or epoch < 1:
            raise ConfigError(f"keep is best or last, patience ≥ 0 and an epoch ≥ 1 update; got {keep!r}, {patience}.")
        self.network = network
        self.best = copy.deepcopy(network).requires_grad_(False).eval() if keep == "best" else None
        self.register_buffer("template", template)
        self._validate, self._epoch, self._patience = validate, epoch, patience
        self._updates, self._since_best = 0, 0
        self.best_loss: float | None = None
        self.best_step = 0
        self.history: list[list[float]] = []

    @property
    def finished(self) -> bool:
        """Whether validation has not improved for `patience` looks."""
        return bool(self._patience) and self._since_best >= self._patience

    @property
    def chosen(self) -> SliceNetwork:
        """The network that predicts: of the best validation loss, or the last one where that is what is kept."""
        return self.network if self.best is None else self.best

    def forward(self, batch: SliceBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return the mean cross-entropy of a batch; `values` play no part."""
        del values
        logits = self.network(batch.slices, batch.draws)
        term = binary_loss(logits[:, None], batch.labels)
        health: dict[str, float] = {}
        if self.history:
            health = {"validation_loss": self.history[-1][1], "epochs_since_best": float(self._since_best)}
        return TaskOutput(term.loss, {"classification": term.loss.detach()}, health, samples=batch.entries)

    def after_update(self, values: Mapping[str, float]) -> None:
        """Average the batch norms' running numbers over ranks; at the end of an epoch look at validation."""
        del values
        self._updates += 1
        _average_statistics(self.network)
        if self._updates % self._epoch:
            return
        training = self.network.training
        self.network.eval()
        loss = float(self._validate(self.network))
        self.network.train(training)
        self.history.append([self._updates, loss])
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self._since_best = loss, self._updates, 0
            if self.best is not None:
                self.best.load_state_dict(self.network.state_dict())
        else:
            self._since_best += 1

    def run_state(self) -> dict[str, Any]:
        """Return the counts, the best loss and the losses so far; the best weights are among the parameters."""
        return {
            "updates": self._updates,
            "since_best": self._since_best,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "history": self.history,
        }

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `run_state` gave. Raises CheckpointError for the state of another task."""
        try:
            self._updates, self._since_best = int(state["updates"]), int(state["since_best"])
            self.best_loss, self.best_step = state["best_loss"], int(state["best_step"])
            self.history = [list(row) for row in state["history"]]
        except KeyError as error:
            raise CheckpointError(
                f"the checkpoint is another task's: it lacks {error}. Choose another output=."
            ) from None


def _average_statistics(network: nn.Module) -> None:
    """Make running means and variances those of all ranks, so that every rank validates the same network."""
    if distributed.world_size() == 1:
        return
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    flat = distributed.sum_over_ranks(torch.cat([b.flatten() for b in buffers])) / distributed.world_size()
    for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


@dataclass(frozen=True)
class ScanOutput:
    """logits: (B, 1), of the scans' probabilities."""

    logits: Tensor


class ContrastPaperPredictor(nn.Module):
    """The network that predicts, with the template that scans are registered to and how they are prepared.

    preparation: a plain tree (fmct.contrast.paper_settings.Preparation). template: (D, H, W) int16 HU on the grid of
    template_facts (name, sha256, affine).
    """

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        config = build(SliceNetworkConfig, architecture["network"], "the architecture's network")
        self.network = build_slice_network(config, side=int(architecture["side"]))
        self.aggregate = str(architecture["aggregate"])
        if self.aggregate not in AGGREGATES:
            raise ArtefactError(f"architecture: aggregate is one of {', '.join(AGGREGATES)}; got {self.aggregate!r}.")
        self.preparation = dict(architecture["preparation"])
        self.template_facts = dict(architecture["template"])
        self.register_buffer("template", torch.zeros(self.template_facts["shape"], dtype=torch.int16))

    def slice_logits(self, slices: Tensor) -> Tensor:
        """Return (S,) logits of (S, H, W) slices in [0, 1]."""
        return self.network(slices)

    def forward(self, x: Tensor, spacing: Tensor | None = None) -> ScanOutput:
        """Return one logit for each of B scans of prepared slices (B, 1, S, H, W)."""
        del spacing
        logits = self.slice_logits(x.flatten(0, 2)).view(len(x), -1)
        found = [scan_logit(scan_probability(row.double().sigmoid().cpu().numpy(), self.aggregate)) for row in logits]
        return ScanOutput(torch.tensor(found, dtype=logits.dtype, device=logits.device)[:, None])


def describe_network(
    network: SliceNetworkConfig,
    *,
    side: int,
    aggregate: str,
    preparation: Mapping[str, Any],
    template: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the architecture that the predictor is built from; template: name, sha256, shape and affine."""
    return {
        "network": plain(network) | {"weights": ""},
        "side": side,
        "aggregate": aggregate,
        "preparation": dict(preparation),
        "template": dict(template),
    }


def build_predictor(architecture: Mapping[str, Any], *, in_channels: int, spacing_mm: TripleF) -> nn.Module:
    """Return the network that predicts, untrained (see fmct.tasks.kinds.TaskKind)."""
    del in_channels, spacing_mm
    return ContrastPaperPredictor(architecture).eval()


def trained_predictor(
    architecture: Mapping[str, Any],
    parameters: Mapping[str, Tensor],
    *,
    in_channels: int,
    spacing_mm: TripleF,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network that predicts with a run's kept weights, and its architecture (see TaskKind)."""
    del in_channels, spacing_mm
    predictor = ContrastPaperPredictor(architecture)
    kept = "best." if any(name.startswith("best.") for name in parameters) else "network."
    state = {f"network.{name.removeprefix(kept)}": v for name, v in parameters.items() if name.startswith(kept)}
    try:
        predictor.load_state_dict({**state, "template": parameters["template"]})
    except (KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ArtefactError(f"the run's parameters do not fit the network of its task.json: {first}") from None
    return predictor.eval(), dict(architecture)

"""Intravenous contrast: presence by cross-entropy, phase and time where they are known, one decision a series.

The kind "contrast" of fmct.tasks.kinds. A batch holds `tiles` windows of each series in a row (windows.per_series);
they are a bag, and the series' label is the bag's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmct.config import build, plain
from fmct.data.labelled import LabelledBatch
from fmct.errors import ArtefactError, ConfigError
from fmct.losses.classification import binary_loss, known_labels
from fmct.losses.term import Term, mean_term
from fmct.models.contrast import PHASES, ContrastNetwork, ContrastNetworkConfig, log_time
from fmct.models.vision_transformer import VisionTransformer
from fmct.tasks.backbone import build_backbone
from fmct.tasks.predictors import Predictors
from fmct.tasks.supervised import SupervisedTask, weighted
from fmct.train.task import TaskOutput

LABELS = ("contrast", *(f"phase_{name}" for name in PHASES), "seconds")
"""The columns of a batch's labels: 0 or 1, one for each phase, and seconds after injection; NaN unknown."""


@dataclass(frozen=True)
class ContrastConfig:
    """The objective. positive_weight: of a series with contrast. phase, seconds: weights of these terms.

    Both are over the series whose phase or time is known; a native series has a phase and no time.
    """

    positive_weight: float = 1.0
    phase: float = 1.0
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.positive_weight <= 0 or self.phase < 0 or self.seconds < 0:
            raise ConfigError("objective: positive_weight is positive, phase and seconds are not negative.")


class Contrast(SupervisedTask):
    """Train a ContrastNetwork on bags of `tiles` windows, whose labels are LABELS."""

    network: ContrastNetwork

    def __init__(self, network: ContrastNetwork, config: ContrastConfig | None = None, *, tiles: int = 1) -> None:
        super().__init__(network)
        self.config = config or ContrastConfig()
        self.tiles = tiles

    def forward(self, batch: LabelledBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return the loss of a batch; `values` play no part."""
        del values
        device = batch.volumes.device
        series, bags = (batch.draws // self.tiles).to(device).unique(return_inverse=True)
        output = self.network(batch.volumes, batch.spacing, bags, num_bags=len(series), drop_path_keys=batch.draws)
        labels = batch.patient_labels.new_empty((len(series), len(LABELS)))
        labels[bags] = batch.patient_labels  # the same for every tile of a bag
        head = self.network.head
        weight = torch.tensor([self.config.positive_weight], device=device)
        terms = {"contrast": binary_loss(output.values[:, :1], labels[:, :1], pos_weight=weight)}
        weights = {"contrast": 1.0}
        if head.phase:
            terms["phase"] = phase_loss(head.phases(output.values), labels[:, 1:-1])
            weights["phase"] = self.config.phase
        if head.seconds:
            terms["seconds"] = time_loss(head.time(output.values), labels[:, -1])
            weights["seconds"] = self.config.seconds
        return weighted(terms, weights, samples=batch.entries)


def phase_loss(logits: Tensor, labels: Tensor) -> Term:
    """Return the mean cross-entropy of (B, 4) logits over the series whose (B, 4) labels name a phase, on all ranks."""
    known, truth = known_labels(labels)
    told = known.all(1) & (truth.sum(1) == 1)
    seen = logits.float().masked_fill(~told[:, None], 0.0)
    return mean_term(functional.cross_entropy(seen, truth.argmax(1), reduction="none"), told.to(seen.dtype))


def time_loss(times: Tensor, seconds: Tensor) -> Term:
    """Return the mean Huber loss of (B,) log times against those of known (B,) seconds, on all ranks."""
    known, truth = known_labels(seconds)
    seen = times.float().masked_fill(~known, 0.0)
    return mean_term(functional.smooth_l1_loss(seen, log_time(truth), reduction="none"), known.to(seen.dtype))


def describe_network(backbone: Mapping[str, Any], config: ContrastNetworkConfig) -> dict[str, Any]:
    """Return the architecture that `build_network` builds from."""
    return {**backbone, "contrast": plain(config)}


def build_network(
    architecture: Mapping[str, Any],
    *,
    in_channels: int,
    spacing_mm: Sequence[float],
    encoder: nn.Module | None = None,
) -> ContrastNetwork:
    """Return the network of an architecture, on `encoder` where one is given (a pretrained one), else untrained."""
    config = build(ContrastNetworkConfig, architecture["contrast"], "the architecture's contrast")
    built = encoder or build_backbone(architecture, in_channels=in_channels, spacing_mm=spacing_mm)
    if not isinstance(built, VisionTransformer):
        raise ArtefactError("architecture: contrast is read off a transformer's tokens; a unet has none.")
    return ContrastNetwork(built, **vars(config))


_predictors = Predictors(build_network)
build_predictor, trained_predictor = _predictors.build, _predictors.trained  # see fmct.tasks.kinds.TaskKind

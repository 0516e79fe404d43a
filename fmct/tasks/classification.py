"""Classification of series or patients: one sigmoid a target, over the labels that are known.

The kind "classification" of fmct.tasks.kinds. A window that is the whole series has the series' label. Windows of a
larger series are labelled where a mask says so; those of a positive patient without a mask have no label of their own
and meet the patient's label as a bag.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmct.config import build, plain
from fmct.data.labelled import LabelledBatch
from fmct.errors import ArtefactError, ConfigError
from fmct.losses.bag import bag_loss
from fmct.losses.classification import binary_loss
from fmct.models.classifier import Classifier, ClassifierConfig
from fmct.models.vision_transformer import VisionTransformer
from fmct.tasks.backbone import build_backbone
from fmct.tasks.predictors import Predictors
from fmct.tasks.supervised import SupervisedTask, weighted
from fmct.train.task import TaskOutput


@dataclass(frozen=True)
class ClassificationConfig:
    """The objective.

    positive_weight: of a positive label's cost, one per target or none. bag: weight of the term over bags of windows
    that have no label of their own; sharpness: from the bag's mean logit (near 0) towards its largest.
    """

    positive_weight: list[float] | None = None
    bag: float = 1.0
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        if self.bag < 0 or self.sharpness <= 0 or any(weight <= 0 for weight in self.positive_weight or []):
            raise ConfigError("objective: bag is not negative, sharpness and positive_weight are positive.")


class Classification(SupervisedTask):
    """Train a classifier."""

    def __init__(self, network: Classifier, config: ClassificationConfig | None = None) -> None:
        super().__init__(network)
        self.config = config or ClassificationConfig()
        weight = self.config.positive_weight
        self._positive_weight = torch.tensor(weight) if weight else None

    def forward(self, batch: LabelledBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return the loss of a batch; `values` play no part."""
        del values
        if isinstance(self.network, Classifier) and self.network.kind == "mil":
            return self._bags(batch)
        output = self.network(batch.volumes, batch.spacing, drop_path_keys=batch.draws)
        weight = self._positive_weight
        terms = {
            "classification": binary_loss(
                output.logits, batch.labels, pos_weight=None if weight is None else weight.to(output.logits.device)
            ),
            "bag": bag_loss(
                output.logits,
                batch.bags,
                unlabelled(batch),
                members=unlabelled(batch).isfinite().any(1),
                sharpness=self.config.sharpness,
            ),
        }
        return weighted(terms, {"classification": 1.0, "bag": self.config.bag}, samples=batch.entries)

    def _bags(self, batch: LabelledBatch) -> TaskOutput:
        """Return the loss of a MIL head: one decision a patient, over the windows of this rank's batch."""
        numbers, bags = batch.bags.unique(return_inverse=True)
        output = self.network(batch.volumes, batch.spacing, bags, num_bags=len(numbers), drop_path_keys=batch.draws)
        labels = batch.patient_labels.new_full((len(numbers), batch.patient_labels.shape[1]), -1.0)
        every = batch.patient_labels.nan_to_num(-1.0)  # unknown; a patient is positive where one series is
        labels = labels.scatter_reduce(0, bags[:, None].expand_as(every), every, "amax")
        weight = self._positive_weight
        term = binary_loss(
            output.logits, labels, pos_weight=None if weight is None else weight.to(output.logits.device)
        )
        return weighted({"classification": term}, {"classification": 1.0}, samples=batch.entries)


def unlabelled(batch: LabelledBatch) -> Tensor:
    """Return (B, T): the patient's positive label where a window has none of its own, NaN elsewhere.

    Such a window may or may not show the finding: it is trained as neither, only as part of its patient. The window of
    a negative patient is negative by itself and needs no bag.
    """
    alone = batch.labels.isnan() & (batch.patient_labels == 1)
    return torch.where(alone, batch.patient_labels, torch.nan)


def describe_network(backbone: Mapping[str, Any], config: ClassifierConfig, *, outputs: int) -> dict[str, Any]:
    """Return the architecture that `build_network` builds from."""
    return {**backbone, "classifier": plain(config), "outputs": outputs}


def build_network(
    architecture: Mapping[str, Any],
    *,
    in_channels: int,
    spacing_mm: Sequence[float],
    encoder: nn.Module | None = None,
) -> Classifier:
    """Return the network of an architecture, on `encoder` where one is given (a pretrained one), else untrained."""
    config = build(ClassifierConfig, architecture["classifier"], "the architecture's classifier")
    built = encoder or build_backbone(architecture, in_channels=in_channels, spacing_mm=spacing_mm)
    if not isinstance(built, VisionTransformer):
        raise ArtefactError("architecture: a classifier needs a transformer; a unet is for segmentation and nct_pe.")
    return Classifier(built, outputs=int(architecture["outputs"]), **vars(config))


_predictors = Predictors(build_network)
build_predictor, trained_predictor = _predictors.build, _predictors.trained  # see fmct.tasks.kinds.TaskKind

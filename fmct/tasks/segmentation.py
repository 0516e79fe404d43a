"""Segmentation of lesions: a transformer with a dense decoder, or a U-Net, under cross-entropy and soft Dice.

The kind "segmentation" of fmct.tasks.kinds. A window without a known mask contributes nothing; one that is known to be
free of lesion does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fmct.config import build, plain
from fmct.data.labelled import LabelledBatch
from fmct.losses.segmentation import segmentation_loss
from fmct.models.segmenter import Segmenter, SegmenterConfig
from fmct.models.unet import ConvEncoder, UNetConfig, build_unet
from fmct.tasks.backbone import build_backbone, configured
from fmct.tasks.predictors import Predictors
from fmct.tasks.supervised import SupervisedTask, weighted
from fmct.train.task import TaskOutput

Network = Any  # Segmenter or UNet, which share an interface


@dataclass(frozen=True)
class SegmentationConfig:
    """The objective: weights of cross-entropy and of soft Dice."""

    cross_entropy: float = 1.0
    dice: float = 1.0


class Segmentation(SupervisedTask):
    """Train a segmenter on windows with masks."""

    def __init__(self, network: Network, config: SegmentationConfig | None = None) -> None:
        super().__init__(network)
        self.config = config or SegmentationConfig()

    def forward(self, batch: LabelledBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return the loss of a batch; `values` play no part."""
        del values
        output = self.network(batch.volumes, batch.spacing, drop_path_keys=batch.draws)
        term = segmentation_loss(
            output.logits,
            batch.mask,
            valid=batch.valid,
            has_mask=batch.has_mask,
            cross_entropy=self.config.cross_entropy,
            dice=self.config.dice,
        )
        return weighted({"segmentation": term}, {"segmentation": 1.0}, samples=batch.entries)


def describe_network(backbone: Mapping[str, Any], config: SegmenterConfig, *, outputs: int = 1) -> dict[str, Any]:
    """Return the architecture that `build_network` builds from."""
    return {**backbone, "segmenter": plain(config), "outputs": outputs}


def build_network(
    architecture: Mapping[str, Any],
    *,
    in_channels: int,
    spacing_mm: Sequence[float],
    encoder: nn.Module | None = None,
) -> Network:
    """Return the network of an architecture, on `encoder` where one is given (a pretrained one), else untrained."""
    config = build(SegmenterConfig, architecture["segmenter"], "the architecture's segmenter")
    outputs = int(architecture["outputs"])
    backbone = configured(architecture)
    if isinstance(backbone, UNetConfig):
        return build_unet(backbone, in_channels=in_channels, outputs=outputs)
    built = encoder or build_backbone(architecture, in_channels=in_channels, spacing_mm=spacing_mm)
    assert not isinstance(built, ConvEncoder)
    return Segmenter(built, outputs=outputs, **vars(config))  # type: ignore[arg-type]


_predictors = Predictors(build_network)
build_predictor, trained_predictor = _predictors.build, _predictors.trained  # see fmct.tasks.kinds.TaskKind

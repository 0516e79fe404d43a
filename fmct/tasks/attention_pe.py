"""Embolism on CTPA by attention-guided slabs (stage one) and a recurrent reader of their features (stage two).

The kind "attention_pe" of fmct.tasks.kinds, after Shi et al., "Automatic Diagnosis of Pulmonary Embolism Using an
Attention-guided Framework" (arXiv 2006.00074): classification of slabs, and a Dice loss between the attention map and
the mask where there is one; then patient labels alone, over whole series. The paper's text was not available: the
formulas are fmct's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fmct import distributed
from fmct.config import build, plain
from fmct.data.labelled import LabelledBatch
from fmct.data.series_features import SeriesBatch
from fmct.errors import ArtefactError, ConfigError
from fmct.losses.attention import attention_loss
from fmct.losses.classification import binary_loss
from fmct.models.conv_lstm import SeriesReader, SeriesReaderConfig
from fmct.models.slab_network import SlabNetwork, SlabNetworkConfig, TokenSlabNetwork, build_slab_network
from fmct.models.slab_series import SlabSeriesNetwork
from fmct.models.vision_transformer import VisionTransformer
from fmct.tasks.backbone import build_backbone
from fmct.tasks.predictors import Predictors
from fmct.tasks.supervised import SupervisedTask, weighted
from fmct.train.task import TaskOutput

POOLINGS = ("max", "area")


@dataclass(frozen=True)
class SlabObjective:
    """Stage one's loss: cross-entropy + attention · Dice between attention map and mask.

    attention: the weight; 0 leaves the term out. mask_pooling: how the mask comes to the map's cells in-plane: `max`
    (a cell is lesion where it holds any) or `area` (its lesion share); along z always max, as annotations are sparse.
    negatives: slabs of negative patients push their mean attention down.
    """

    attention: float = 1.0
    mask_pooling: str = "max"
    negatives: bool = True

    def __post_init__(self) -> None:
        if self.attention < 0 or self.mask_pooling not in POOLINGS:
            raise ConfigError(
                f"objective: attention is not negative and mask_pooling one of {', '.join(POOLINGS)}; got "
                f"{self.attention:g} and {self.mask_pooling!r}."
            )


class SlabAttention(SupervisedTask):
    """Stage one: train a slab classifier whose attention is held to the lesion."""

    network: SlabNetwork | TokenSlabNetwork

    def __init__(self, network: SlabNetwork | TokenSlabNetwork, config: SlabObjective | None = None) -> None:
        super().__init__(network)
        self.config = config or SlabObjective()
        if distributed.world_size() > 1 and any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
            raise ConfigError(
                "network.norm=batch: every rank would keep averages of its own. Take network.norm=group or one process."
            )

    def forward(self, batch: LabelledBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return the loss of a batch of slabs; `values` play no part."""
        del values
        output = self.network(batch.volumes, batch.spacing, drop_path_keys=batch.draws)
        terms = {"classification": binary_loss(output.logits, batch.labels)}
        weights = {"classification": 1.0, "attention": self.config.attention}
        if self.config.attention > 0:
            grid = output.attention.shape[1:]
            terms["attention"] = attention_loss(
                output.attention,
                pooled_mask(batch.mask * batch.valid, grid, pooling=self.config.mask_pooling),
                valid=functional.adaptive_avg_pool3d(batch.valid, grid),
                has_mask=batch.has_mask,
                negatives=self.config.negatives,
            )
        return weighted(terms, weights, samples=batch.entries)


class SeriesReading(SupervisedTask):
    """Stage two: train the reader of a slab network's features on labels of series."""

    network: SlabSeriesNetwork

    def forward(self, batch: SeriesBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return the loss of a batch of series; `values` play no part."""
        del values
        logits = self.network.read(batch.features, batch.valid)
        return weighted(
            {"classification": binary_loss(logits, batch.labels)}, {"classification": 1.0}, samples=batch.entries
        )


def pooled_mask(mask: Tensor, grid: Sequence[int], *, pooling: str) -> Tensor:
    """Return a lesion share (B, D, H, W) on the cells (gd, gh, gw) of an attention map, (B, gd, gh, gw)."""
    depth, height, width = grid
    along = functional.adaptive_max_pool3d(mask, (depth, *mask.shape[2:]))
    pool = functional.adaptive_max_pool3d if pooling == "max" else functional.adaptive_avg_pool3d
    return pool(along, (depth, height, width))


def describe_slabs(
    config: SlabNetworkConfig, *, slices: int, backbone: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the architecture of stage one: the ResNet's, or on a transformer's `backbone`."""
    return {**(backbone or {}), "slabs": plain(config), "slices": slices}


def describe_series(slabs: Mapping[str, Any], config: SeriesReaderConfig) -> dict[str, Any]:
    """Return the architecture of stage two on stage one's."""
    return {**slabs, "reader": plain(config)}


def build_network(
    architecture: Mapping[str, Any],
    *,
    in_channels: int,
    spacing_mm: Sequence[float],
    encoder: nn.Module | None = None,
) -> SlabNetwork | TokenSlabNetwork | SlabSeriesNetwork:
    """Return the network of an architecture, on `encoder` where one is given (a pretrained one), else untrained."""
    config = build(SlabNetworkConfig, architecture["slabs"], "the architecture's slabs")
    built = encoder
    if built is None and architecture.get("encoder"):
        built = build_backbone(architecture, in_channels=in_channels, spacing_mm=spacing_mm)
    if built is not None and not isinstance(built, VisionTransformer):
        raise ArtefactError("architecture: slabs are read by a transformer or by the ResNet of `slabs` itself.")
    slabs = build_slab_network(config, in_channels=in_channels, slices=int(architecture["slices"]), encoder=built)
    if not architecture.get("reader"):
        return slabs
    reader = build(SeriesReaderConfig, architecture["reader"], "the architecture's reader")
    return SlabSeriesNetwork(slabs, SeriesReader(slabs.feature_channels, **vars(reader)))


_predictors = Predictors(build_network)
build_predictor, trained_predictor = _predictors.build, _predictors.trained  # see fmct.tasks.kinds.TaskKind

"""From a kind's network in training to the one that predicts, for kinds where both are built the same way."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from fmct.models.adaptation import EncoderHolder
from fmct.shapes import TripleF
from fmct.tasks.backbone import load_trained, without_training


class NetworkBuilder(Protocol):
    """Builds a kind's untrained network from its architecture."""

    def __call__(self, architecture: Mapping[str, Any], *, in_channels: int, spacing_mm: TripleF) -> EncoderHolder:
        """Return the network."""
        ...


class Predictors:
    """The two functions of `fmct.tasks.kinds.TaskKind` for a network that predicts as it was trained."""

    def __init__(self, build_network: NetworkBuilder) -> None:
        self._build = build_network

    def build(self, architecture: Mapping[str, Any], *, in_channels: int, spacing_mm: TripleF) -> nn.Module:
        """Return the network that predicts, untrained."""
        return self._build(without_training(architecture), in_channels=in_channels, spacing_mm=spacing_mm).eval()

    def trained(
        self,
        architecture: Mapping[str, Any],
        parameters: Mapping[str, torch.Tensor],
        *,
        in_channels: int,
        spacing_mm: TripleF,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Return the network that predicts with a run's weights, and its architecture."""
        network = self._build(architecture, in_channels=in_channels, spacing_mm=spacing_mm)
        return load_trained(network, architecture, parameters).eval(), without_training(architecture)

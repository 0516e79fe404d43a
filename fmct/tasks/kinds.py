"""The kinds of downstream tasks, by name: how the module that predicts is built again from a description.

A kind is a module with two functions (see `TaskKind`; `fmct.tasks.predictors` has those of most). A run says its kind
in RUN/task.json, a model folder in its config.json; only names registered here are built, never what a folder names by
itself.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import nn

from fmct.errors import ArtefactError
from fmct.shapes import TripleF

KINDS: dict[str, str] = {
    "contrast_paper": "fmct.tasks.contrast_paper",
    "classification": "fmct.tasks.classification",
    "segmentation": "fmct.tasks.segmentation",
    "nct_pe": "fmct.tasks.nct_pe",
    "attention_pe": "fmct.tasks.attention_pe",
    "contrast": "fmct.tasks.contrast",
    "finding_heads": "fmct.tasks.finding_network",
}


class TaskKind(Protocol):
    """What a kind's module offers to export and prediction."""

    def build_predictor(self, architecture: Mapping[str, Any], *, in_channels: int, spacing_mm: TripleF) -> nn.Module:
        """Return the network that predicts, untrained: no second phase, no projector, LoRA merged.

        Its forward takes (x (B, C, D, H, W), spacing=(B, 3) mm) and returns an output with some of: `logits`,
        `segmentation`, `classification`, `attention` (see fmct.publish.window_output).
        """
        ...

    def trained_predictor(
        self,
        architecture: Mapping[str, Any],
        parameters: Mapping[str, torch.Tensor],
        *,
        in_channels: int,
        spacing_mm: TripleF,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Return (the network that predicts, with a run's weights; the architecture that builds it again).

        architecture: of the network as trained, from RUN/task.json. parameters: the checkpoint's, under the task's
        names.
        """
        ...


def kind_named(name: str, where: str) -> TaskKind:
    """Return the kind of a name. Raises ArtefactError for one that this fmct does not know."""
    if name not in KINDS:
        raise ArtefactError(
            f"{where}: the task kind {name!r} is none that this fmct knows ({', '.join(sorted(KINDS))}). "
            "Install the fmct that wrote it, or register your own kind: fmct.tasks.kinds.KINDS[NAME] = MODULE."
        )
    return cast(TaskKind, importlib.import_module(KINDS[name]))

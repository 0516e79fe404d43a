"""Tiny downstream models whose every part counts, and the runs and folders they come from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmct.config import plain
from fmct.models.classifier import ClassifierConfig
from fmct.models.dual_phase import DualPhaseConfig
from fmct.models.encoder import EncoderConfig
from fmct.models.segmenter import SegmenterConfig
from fmct.preprocess import InputSpec, Preprocessing, Window
from fmct.publish.decision import Decision
from fmct.publish.model_folder import write_model
from fmct.publish.task_record import TaskRecord
from fmct.tasks.kinds import kind_named

ENCODER = {"encoder": plain(EncoderConfig(size="tiny", embed_dim=32, depth=2, num_heads=1, patch_size=[4, 4, 4]))}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "segmentation": {
        **ENCODER,
        "segmenter": plain(SegmenterConfig(taps=2, width=8, stem_channels=4)),
        "outputs": 1,
    },
    "classification": {**ENCODER, "classifier": plain(ClassifierConfig(head="linear")), "outputs": 1},
    "nct_pe": {**ENCODER, "dual_phase": plain(DualPhaseConfig(taps=2, width=8, stem_channels=4, hidden=16))},
}
SPACING = (12.0, 12.0, 12.0)
PREPROCESSING = Preprocessing(
    (Window(-160, 240, "soft tissue"),), InputSpec(size_voxels=(16, 16, 16), spacing_mm=SPACING)
)


def record(kind: str, *, targets: tuple[str, ...] = ("lesion",), **changes: Any) -> TaskRecord:
    """Return the record of a tiny model of a kind; `changes` go to it, architecture keys into the architecture."""
    architecture = {**ARCHITECTURES[kind], **changes.pop("architecture", {})}
    if "outputs" in architecture:
        architecture["outputs"] = len(targets)
    return TaskRecord(
        **{
            "kind": kind,
            "targets": targets,
            "architecture": architecture,
            "preprocessing": PREPROCESSING,
            "in_channels": 1,
            "spacing_mm": SPACING,
            **changes,
        }
    )


def network(described: TaskRecord, *, seed: int = 0, scale: float = 0.15) -> nn.Module:
    """Return the network of a record with weights that make every part count, unlike those of an initialisation."""
    module = kind_named(described.kind, "test").build_predictor(
        described.architecture, in_channels=described.in_channels, spacing_mm=described.spacing_mm
    )
    generator = torch.Generator().manual_seed(seed)
    state = {name: scale * torch.randn(value.shape, generator=generator) for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module


def tiny_model(
    folder: Path,
    kind: str = "segmentation",
    *,
    decision: Decision | None = None,
    facts: Mapping[str, Any] | None = None,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write the folder of a tiny model and return it."""
    described = record(kind, **changes)
    return write_model(folder, network(described, seed=seed), described, decision=decision, facts=facts)

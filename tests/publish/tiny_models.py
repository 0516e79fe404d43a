"""Tiny downstream models whose every part counts; this module is a task kind of its own, for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmct.models.classifier import Classifier
from fmct.models.dual_phase import DualPhase
from fmct.models.encoder import VisionTransformer
from fmct.models.segmenter import Segmenter
from fmct.models.single_phase import SinglePhase
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish.decision import Decision
from fmct.publish.load_model import PublishedModel, load_model
from fmct.publish.model_folder import write_model
from fmct.publish.task_record import TaskRecord
from fmct.shapes import TripleF
from fmct.tasks import kinds
from fmct.windows import Window

KIND = "tiny"
NETWORKS = ("segmenter", "classifier", "mil", "phase")
SPACING = (12.0, 12.0, 12.0)
PREPROCESSING = Preprocessing(
    (Window(-160, 240, "soft tissue"),), InputSpec(size_voxels=(16, 16, 16), spacing_mm=SPACING)
)


def register(patch: pytest.MonkeyPatch) -> None:
    """Make this module's kind known while `patch` lasts."""
    patch.setitem(kinds.KINDS, KIND, __name__)


def build_encoder(in_channels: int, spacing_mm: TripleF) -> VisionTransformer:
    """Return a transformer of 32 features, 2 blocks and patches of 4 voxels."""
    return VisionTransformer(
        in_channels=in_channels, patch_size=4, embed_dim=32, depth=2, num_heads=1, spacing_mm=spacing_mm
    )


def build_predictor(architecture: Mapping[str, Any], *, in_channels: int, spacing_mm: TripleF) -> nn.Module:
    """Return the untrained network that architecture["network"] names."""
    encoder, outputs = build_encoder(in_channels, spacing_mm), int(architecture["outputs"])
    if architecture["network"] == "segmenter":
        return Segmenter(encoder, outputs=outputs, taps=2, width=8, stem_channels=4)
    if architecture["network"] == "phase":
        return SinglePhase(encoder, outputs=outputs, classes=outputs, taps=2, width=8, stem_channels=4, hidden=16)
    return Classifier(encoder, outputs=outputs, head="mil" if architecture["network"] == "mil" else "linear")


def trained_predictor(
    architecture: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    *,
    in_channels: int,
    spacing_mm: TripleF,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the non-contrast pathway of a run whose network was a DualPhase, and its architecture."""
    outputs = int(architecture["outputs"])
    network = DualPhase(
        build_encoder(in_channels, spacing_mm),
        outputs=outputs,
        classes=outputs,
        taps=2,
        width=8,
        stem_channels=4,
        hidden=16,
    )
    network.load_state_dict({name.removeprefix("network."): value for name, value in parameters.items()})
    return network.export_nct(), {"network": "phase", "outputs": outputs}


def record(network: str, *, targets: tuple[str, ...] = ("lesion",), **changes: Any) -> TaskRecord:
    """Return the record of a tiny model."""
    settings = {
        "kind": KIND,
        "targets": targets,
        "architecture": {"network": network, "outputs": len(targets)},
        "preprocessing": PREPROCESSING,
        "in_channels": 1,
        "spacing_mm": SPACING,
        "pool": "bag" if network == "mil" else "max",
    }
    return TaskRecord(**{**settings, **changes})


def drawn(module: nn.Module, *, seed: int = 0, scale: float = 0.15) -> nn.Module:
    """Return the module with weights that make every part count, unlike those of an initialisation."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: scale * torch.randn(value.shape, generator=generator) for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module


def network(described: TaskRecord, *, seed: int = 0) -> nn.Module:
    """Return the drawn network of a record."""
    built = build_predictor(described.architecture, in_channels=described.in_channels, spacing_mm=described.spacing_mm)
    return drawn(built, seed=seed)


def in_memory(kind: str, *, decision: Decision | None = None, seed: int = 0, **changes: Any) -> PublishedModel:
    """Return a tiny model that no folder holds."""
    described = record(kind, **changes)
    return PublishedModel(network(described, seed=seed), described, decision=decision)


def tiny_model(folder: Path, kind: str = "segmenter", *, seed: int = 0, **settings: Any) -> Path:
    """Write the folder of a tiny model and return it; `settings` go to write_model, `record` replaces the record."""
    described = settings.pop("record", None) or record(kind)
    return write_model(folder, network(described, seed=seed), described, **settings)


def loaded(folder: Path, kind: str = "segmenter", **settings: Any) -> PublishedModel:
    """Write the folder of a tiny model and return it as loaded."""
    return load_model(tiny_model(folder, kind, **settings), device="cpu")

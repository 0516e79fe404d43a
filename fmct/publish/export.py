"""From a run folder to an encoder folder: the teacher of the newest checkpoint that verifies."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmct.artefacts import read_json
from fmct.config import build
from fmct.data.view_config import ViewsConfig
from fmct.errors import ArtefactError, CheckpointError, ConfigError, WeightsError
from fmct.models.encoder import EncoderConfig
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish.folder import write_encoder
from fmct.publish.run_facts import run_corpus, run_facts
from fmct.publish.weights import read_weights
from fmct.shapes import triple, triple_of_floats
from fmct.train import checkpoint
from fmct.train.run import load_config

CHECKPOINTS = "checkpoints"
_HEADS = ("dino_head.", "ibot_head.")


@dataclass(frozen=True)
class ExportConfig:
    """How a series becomes input of the exported encoder; what is left out follows from the views it trained on.

    spacing_mm: default the geometric middle of the global views' range over their size. size_voxels: default the global
    views' size. overlap, skip_air: see fmct.preprocess.InputSpec. modality: default the corpus's.
    """

    spacing_mm: list[float] | None = None
    size_voxels: list[int] | None = None
    overlap: float = 0.25
    skip_air: float = 0.05
    modality: str | None = None


def export(
    run: str | Path,
    folder: str | Path,
    *,
    step: int | None = None,
    student: bool = False,
    with_heads: bool = False,
    license_id: str = "other",
    overwrite: bool = False,
) -> Path:
    """Write the encoder folder of a run and return it.

    step: of which checkpoint, by default the newest that verifies. student: the trained weights in place of their
    average, the teacher. with_heads: also heads.safetensors, the projection heads of the same model.
    Raises CheckpointError, ArtefactError, WeightsError.
    """
    run = Path(run)
    tree = load_config(run)
    found = find_checkpoint(run, step)
    config = build(EncoderConfig, _part(tree, "encoder", run), f"{run}: encoder")
    views = build(ViewsConfig, _part(tree, "views", run), f"{run}: views")
    choices = build(ExportConfig, tree.get("export") or {}, f"{run}: export")
    encoder, heads = _read_model(found, student=student)
    state = read_json(found / checkpoint.STATE, "fmct-state", "1.0")["state"]
    corpus = run_corpus(run, tree)
    source = "student" if student else "teacher"
    return write_encoder(
        folder,
        encoder,
        config,
        preprocessing_of(views, choices, modality=_modality(choices, corpus)),
        facts=run_facts(run, tree, found, state, source=source, corpus=corpus),
        heads=heads if with_heads else None,
        license_id=license_id,
        overwrite=overwrite,
    )


def preprocessing_of(views: ViewsConfig, choices: ExportConfig | None = None, *, modality: str = "CT") -> Preprocessing:
    """Return the Preprocessing whose tiles look like the global views that `views` describes.

    A range of shares of the body in place of millimetres means that the whole scan was stretched over the view: then
    `resize`, unless `choices` names a spacing.
    """
    choices = choices or ExportConfig()
    view = views.global_views
    size = triple(choices.size_voxels, "export.size_voxels") if choices.size_voxels else view.shape
    if choices.spacing_mm:
        spacing = triple_of_floats(choices.spacing_mm, "export.spacing_mm")
    elif view.in_plane_share:
        spacing = None
    else:
        through, in_plane = (_middle(view.through_plane_mm), _middle(view.in_plane_mm))
        d, h, w = view.shape
        spacing = (round(through / d, 4), round(in_plane / h, 4), round(in_plane / w, 4))
    spec = InputSpec(
        mode="tiles" if spacing else "resize",
        size_voxels=size,
        spacing_mm=spacing,
        overlap=choices.overlap,
        skip_air=choices.skip_air,
        foreground_above=views.body_above,
    )
    percentiles = (views.percentiles[0], views.percentiles[1]) if views.percentiles else None
    windows = () if percentiles else tuple(views.windows)
    return Preprocessing(windows=windows, input=spec, modality=modality, percentiles=percentiles)


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """Return a run's newest checkpoint that verifies, or that of `step`. Raises CheckpointError."""
    parent = run / CHECKPOINTS
    if step is None:
        found = checkpoint.newest(parent)
        if found is None:
            raise CheckpointError(f"{parent}: no checkpoint that verifies, so there is nothing to export. Train first.")
        return found
    found = parent / checkpoint.folder_name(step)
    if not found.is_dir():
        there = sorted(
            int(match[1]) for path in parent.glob("step-*") if (match := checkpoint.NAME.fullmatch(path.name))
        )
        steps = ", ".join(str(number) for number in there) or "none"
        raise CheckpointError(f"{run}: no checkpoint of step {step}. There are: {steps}.")
    checkpoint.verify(found)
    return found


def _read_model(found: Path, *, student: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return (encoder, heads) of a checkpoint, names without the task's prefixes."""
    parameters = read_weights(found / checkpoint.PARAMETERS)
    model = parameters
    if not student:
        tensors = read_weights(found / checkpoint.TASK)
        model = {
            name.removeprefix("teacher/"): tensor for name, tensor in tensors.items() if name.startswith("teacher/")
        }
    encoder = _below(model, "encoder.")
    if not encoder:
        raise WeightsError(
            f"{found}: holds no {'student' if student else 'teacher'} encoder. "
            + (
                "The run is not a pretraining run."
                if student
                else "A run without a teacher is exported with --student."
            )
        )
    heads = {name: tensor for name, tensor in model.items() if name.startswith(_HEADS)}
    heads |= {name: tensor for name, tensor in parameters.items() if name.startswith("reconstruction_head.")}
    return encoder, heads


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _part(tree: Mapping[str, Any], name: str, run: Path) -> dict[str, Any]:
    part = tree.get(name)
    if not isinstance(part, Mapping):
        raise ArtefactError(
            f"{run}: its config.yaml has no `{name}`, so it is not a pretraining run. Expected a folder that "
            "`fmct pretrain` wrote."
        )
    return dict(part)


def _modality(choices: ExportConfig, corpus: Mapping[str, Any]) -> str:
    """Return the one modality that the encoder takes. Raises ConfigError when the run saw several."""
    seen = list(corpus.get("modality", {})) or ["CT"]
    if choices.modality is None and len(seen) > 1:
        raise ConfigError(
            f"the run saw {', '.join(seen)}, and an encoder folder is for one of them. Say which: add "
            f"`export: {{modality: {seen[0]}}}` to the run's configuration."
        )
    return choices.modality or seen[0]


def _middle(limits: list[float]) -> float:
    """Return the geometric mean of [low, high]: the middle of a log-uniform range."""
    return float((limits[0] * limits[1]) ** 0.5)

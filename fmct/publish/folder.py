"""Writing an encoder folder: all files, golden numbers and checksums, or nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fmct.artefacts import stamped
from fmct.config import plain
from fmct.errors import ArtefactError, ConfigError
from fmct.models.encoder import EncoderConfig, VisionTransformer, build_encoder
from fmct.preprocess import FORMAT as PREPROCESS_FORMAT
from fmct.preprocess import Preprocessing
from fmct.publish import golden, layout
from fmct.publish.card import card
from fmct.publish.load import measure
from fmct.publish.weights import load_into, write_weights


def write_encoder(
    folder: str | Path,
    weights: Mapping[str, torch.Tensor],
    config: EncoderConfig,
    preprocessing: Preprocessing,
    *,
    facts: Mapping[str, Any] | None = None,
    heads: Mapping[str, torch.Tensor] | None = None,
    license_id: str = "other",
    overwrite: bool = False,
) -> Path:
    """Write the encoder folder of DESIGN 4 and return its path; it appears whole or not at all.

    weights: the encoder's state dict, fp32, names without a wrapper's prefix; it must fit `config` exactly. facts: what
    the card says of the training (`fmct.publish.facts`). heads: tensors for heads.safetensors beside it.
    A folder that holds the same run and step, or an encoder that `overwrite` gives up, is replaced; anything else is
    refused. Raises ArtefactError, WeightsError.
    """
    folder, facts = Path(folder), dict(facts or {})
    replace = overwrite or same_origin(folder, facts)
    layout.refuse_to_overwrite(folder, replace=replace)
    channels = preprocessing.channels
    spacing = preprocessing.input.spacing_mm or (1.0, 1.0, 1.0)
    model = build_encoder(config, channels, spacing)
    load_into(model, weights, where="the run's encoder")
    model.eval().requires_grad_(False)
    _check_input(model, preprocessing)
    description = {
        "architecture": "fmct.models.encoder.VisionTransformer",
        "encoder": plain(config),
        "in_channels": channels,
        "spacing_mm": list(spacing),
        "num_features": model.num_features,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "training": facts,
    }
    with layout.committed(folder, replace=replace) as temporary:
        write_weights(temporary / layout.WEIGHTS, model.state_dict())
        if heads:
            write_weights(temporary / layout.HEADS, heads)
        write_description(temporary / layout.CONFIG, stamped(*layout.CONFIG_FORMAT, description))
        write_description(temporary / layout.PREPROCESS, stamped(*PREPROCESS_FORMAT, preprocessing.to_dict()))
        write_description(temporary / layout.GOLDEN, stamped(*golden.FORMAT, measure(model, preprocessing)))
        text = card(model, config, preprocessing, facts, name=folder.name, license_id=license_id)
        (temporary / layout.CARD).write_text(text, encoding="utf-8")
        layout.write_sums(temporary)
    return folder


def _check_input(model: VisionTransformer, preprocessing: Preprocessing) -> None:
    try:
        model.num_patches(preprocessing.input.size_voxels)
    except ConfigError as error:
        raise ConfigError(f"export: size_voxels does not fit the encoder: {error}") from None


def same_origin(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Return whether `folder` was exported from the same run and source; then it may be brought up to date."""
    try:
        there = json.loads((folder / layout.CONFIG).read_text(encoding="utf-8"))["training"]
        return bool(facts.get("run")) and all(there.get(key) == facts.get(key) for key in ("run", "source"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_description(path: Path, content: Mapping[str, Any]) -> None:
    """Write a stamped tree as JSON. Raises ArtefactError for a number that JSON cannot hold."""
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError:
        raise ArtefactError(f"{path.name}: a number in it is NaN or infinite, which JSON cannot hold.") from None
    path.write_text(text + "\n", encoding="utf-8")

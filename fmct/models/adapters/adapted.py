"""What every adapter returns: the encoder in fmct's own modules, its configuration, and how its input is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from fmct.errors import ConfigError
from fmct.models.adapters.checkpoint import fill
from fmct.models.encoder import EncoderConfig, VisionTransformer, build_encoder
from fmct.preprocess import Preprocessing

LAYOUTS = {"fmhct": "load_fmhct", "voxelfm": "load_voxelfm", "3dino": "load_3dino"}


@dataclass(frozen=True)
class AdaptedEncoder:
    """A published encoder. The model is in evaluation mode, fp32, without gradients; `facts` say where it came from."""

    model: VisionTransformer
    config: EncoderConfig
    preprocessing: Preprocessing
    facts: Mapping[str, Any] = field(default_factory=dict)


def adapted(
    weights: Mapping[str, Tensor],
    config: EncoderConfig,
    channels: int,
    preprocessing: Preprocessing,
    facts: Mapping[str, Any],
    where: str,
) -> AdaptedEncoder:
    """Return the encoder of a configuration filled with weights under its own names. Raises WeightsError."""
    model = build_encoder(config, channels)
    fill(model, weights, where)
    model.eval().requires_grad_(False)
    return AdaptedEncoder(model, config, preprocessing, dict(facts))


def load_adapted(layout: str, path: str | Path, **options: Any) -> AdaptedEncoder:
    """Return the encoder of a file in a named layout: fmhct, voxelfm or 3dino. `options` are that loader's own.

    Raises ConfigError for an unknown layout or option, WeightsError when the file does not hold that layout exactly.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}.")
    module = {"3dino": "threedino"}.get(layout, layout)
    loader: Callable[..., AdaptedEncoder] = getattr(import_module(f"fmct.models.adapters.{module}"), LAYOUTS[layout])
    known = [name for name in loader.__annotations__ if name not in ("path", "return")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"layout {layout}: no option {unknown[0]}; it knows {', '.join(known) or 'none'}.")
    return loader(path, **options)

"""Published encoders of other projects as PublishedEncoders, and as encoder folders of fmct's own."""

from pathlib import Path
from typing import Any

import torch

from fmct.models.adapters.adapted import load_adapted
from fmct.publish.folder import write_encoder
from fmct.publish.load import PublishedEncoder, load_encoder


def open_encoder(
    path: str | Path, *, layout: str = "", device: torch.device | str | None = None, **options: Any
) -> PublishedEncoder:
    """Return the encoder of an fmct folder or hub id, or with a layout (fmhct, voxelfm, 3dino) of that project's file.

    options: of the layout's loader, such as role=teacher. Raises ArtefactError, WeightsError or ConfigError.
    """
    if not layout:
        return load_encoder(path, device=device, **options)
    found = load_adapted(layout, path, **options)
    device = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    return PublishedEncoder(
        found.model.to(device),
        found.config,
        found.preprocessing,
        facts=found.facts,
        origin=f"{layout}:{Path(path).name}",
    )


def convert(
    path: str | Path,
    folder: str | Path,
    *,
    layout: str,
    license_id: str = "other",
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Write another project's encoder as an encoder folder, which every command takes, and return the folder.

    Its preprocessing and golden numbers are inside. The licence of the weights stays their owner's: say it. overwrite:
    replace an encoder folder that is there.
    """
    found = load_adapted(layout, path, **options)
    return write_encoder(
        folder,
        found.model.state_dict(),
        found.config,
        found.preprocessing,
        facts=dict(found.facts),
        license_id=license_id,
        overwrite=overwrite,
    )

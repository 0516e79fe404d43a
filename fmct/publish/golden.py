"""Golden numbers: a closed-form input, and what the encoder and its preprocessing made of it when it was exported.

They tell whether an installation computes what the exporting one did: another torch, machine or fmct version that
changes features is caught by `selftest()` before the features are used.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fmct.preprocess import Preprocessing
from fmct.shapes import Triple, triple
from fmct.volume import UNITS, Volume

FORMAT = ("fmct-golden", "1.0")
TOLERANCE = 1e-4
INPUT = "x[0,c,z,y,x] = 0.5 + 0.5 sin(0.11 (c + 1) + 0.37 z + 0.23 y + 0.13 x + 0.002 z y x)"
VOLUME = (
    "value = −200 + 60 (z − y) + 9 x + 400 sin(0.31 z + 0.17 y + 0.23 x), rounded; (14, 30, 26) at (4, 1.5, 2) mm; its "
    "lowest value is put at 0 for a normalisation"
)
VOLUME_SHAPE, VOLUME_SPACING = (14, 30, 26), (4.0, 1.5, 2.0)


def golden_size(patch_size: Sequence[int]) -> Triple:
    """Return the input size of 3 × 2 × 4 patches: cheap, and a swapped axis does not go unseen."""
    return triple([count * patch for count, patch in zip((3, 2, 4), patch_size, strict=True)], "patch_size")


def golden_input(channels: int, size: Sequence[int]) -> torch.Tensor:
    """Return the closed-form input (1, C, D, H, W) float32 that INPUT describes."""
    c, z, y, x = np.meshgrid(np.arange(channels), *(np.arange(n) for n in size), indexing="ij")
    phase = 0.11 * (c + 1) + 0.37 * z + 0.23 * y + 0.13 * x + 0.002 * (z * y * x)
    return torch.from_numpy(0.5 + 0.5 * np.sin(phase.astype(np.float64)))[None].float()


def golden_volume(modality: str, *, magnitudes: bool = False) -> Volume:
    """Return the closed-form series that VOLUME describes, with its axes running Inferior, Anterior, Left.

    magnitudes: the lowest value is 0, as a normalisation of MR takes them.
    """
    z, y, x = np.meshgrid(*(np.arange(n) for n in VOLUME_SHAPE), indexing="ij")
    values = np.rint(-200 + 60 * (z - y) + 9 * x + 400 * np.sin(0.31 * z + 0.17 * y + 0.23 * x))
    values = values - values.min() if magnitudes else values
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -VOLUME_SPACING[0], VOLUME_SPACING[1], -VOLUME_SPACING[2]
    affine[:, 3] = (20.0, -30.0, 40.0, 1.0)
    voxels = values.astype(np.int16 if modality == "CT" else np.float32)
    return Volume(voxels, affine, modality=modality, units=UNITS.get(modality, "arbitrary"))


def encoder_numbers(model: Any, channels: int, size: Sequence[int], spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Return what `model` makes of the golden input at `spacing_mm`, in fp32, and the SHA-256 of all its features."""
    device = next(model.parameters()).device
    x = golden_input(channels, size).to(device)
    spacing = torch.tensor([list(spacing_mm)], dtype=torch.float32, device=device)
    with full_precision(device):
        output = model(x, spacing=spacing)
    cls, patches = output.cls[0].float().cpu(), output.patches[0].float().cpu()
    return {
        "cls": cls.tolist(),
        "mean_patch": patches.double().mean(dim=0).tolist(),
        "first_patch": patches[0].tolist(),
        "last_patch": patches[-1].tolist(),
        "sha256": hashlib.sha256(torch.cat([cls[None], patches]).numpy().tobytes()).hexdigest(),
    }


def preprocessing_numbers(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what `preprocessing` makes of the golden volume: tiles, foreground, means of the first tile's octants."""
    magnitudes = preprocessing.normalisation.kind != "none"
    tiles = preprocessing.tiles(golden_volume(preprocessing.modality, magnitudes=magnitudes))
    first = tiles.tensor[0].double()
    octants = [
        first[:, _half(first.shape[1], z), _half(first.shape[2], y), _half(first.shape[3], x)].mean(dim=(1, 2, 3))
        for z, y, x in np.ndindex(2, 2, 2)
    ]
    return {
        "tiles": len(tiles.tensor),
        "spacing_mm": tiles.spacing_mm[0].tolist(),
        "foreground": tiles.foreground.tolist(),
        "octants": torch.stack(octants).flatten().tolist(),
        "sha256": hashlib.sha256(tiles.tensor.numpy().tobytes()).hexdigest(),
    }


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run a block without gradients, autocast or TF32, so that fp32 means fp32."""
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, float]:
    """Return {name: largest difference over the largest expected magnitude} of every list of numbers.

    A list of another length, or a value that is not finite, counts as infinite.
    """
    result = {}
    for name, value in expected.items():
        if name == "sha256":
            continue
        wanted, got = np.atleast_1d(np.asarray(value, float)), np.atleast_1d(np.asarray(found[name], float))
        if wanted.shape != got.shape or not np.isfinite(got).all():
            result[name] = math.inf
        else:
            result[name] = float(np.abs(wanted - got).max() / max(float(np.abs(wanted).max()), 1e-12))
    return result


def _half(length: int, second: int) -> slice:
    return slice(length // 2, None) if second else slice(0, max(length // 2, 1))

"""A tiny encoder folder and scans to feed it."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from fmct.models.encoder import EncoderConfig, build_encoder
from fmct.phantoms import body as phantom
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish.folder import write_encoder
from fmct.volume import Volume
from fmct.windows import Window

CONFIG = EncoderConfig(size="tiny", embed_dim=64, depth=2, num_heads=1, patch_size=[4, 4, 4], drop_path=0.0)
PREPROCESSING = Preprocessing(
    (Window(-160, 240, "soft tissue"), Window(-1000, 1000, "wide")),
    InputSpec(size_voxels=(16, 16, 16), spacing_mm=(12.0, 12.0, 12.0)),
)
FACTS = {
    "run": "ab" * 32,
    "source": "teacher",
    "step": 30,
    "steps_planned": 40,
    "recipe": "pretrain.dino",
    "objective": {"dino": 1.0, "pixel": 0.5},
    "corpus": {"series": 2, "patients": 1, "modality": {"CT": 2}, "fingerprint": "cd" * 32, "voxel_hashes": ["ef" * 8]},
    "final": {"loss": 3.25, "teacher_entropy": 0.5},
}


def tiny_weights(seed: int = 0, config: EncoderConfig = CONFIG, channels: int = 2) -> dict[str, torch.Tensor]:
    """Return weights that make every part of the encoder count, unlike those of an initialisation."""
    generator = torch.Generator().manual_seed(seed)
    state = build_encoder(config, channels).state_dict()
    return {name: 0.2 * torch.randn(value.shape, generator=generator) for name, value in state.items()}


def tiny_encoder(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write a tiny encoder folder and return it."""
    return write_encoder(folder, tiny_weights(seed), CONFIG, PREPROCESSING, **{"facts": FACTS, **settings})


def body(seed: int = 0) -> Volume:
    """Return a coarse trunk, 30 × 36 × 40 voxels of 10 × 9 × 9.5 mm."""
    return phantom.body(seed, (30, 36, 40), (10.0, 9.0, 9.5))


def write_nifti(path: Path, volume: Volume) -> Path:
    """Write a canonical volume as NIfTI, its axes in the file's own order (x, y, z), and return the path."""
    affine = volume.affine[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(np.ascontiguousarray(volume.voxels.transpose(2, 1, 0)), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path

"""Tiny labelled batches made by hand, and networks to put them through."""

from collections.abc import Sequence
from typing import Any

import torch

from fmct.data.labelled import LabelledBatch
from fmct.models.encoder import EncoderConfig, build_encoder
from fmct.models.vision_transformer import VisionTransformer

NAN = float("nan")
ENCODER = EncoderConfig(
    size="tiny", embed_dim=24, depth=2, num_heads=2, patch_size=[4, 4, 4], num_registers=1, layer_scale=None
)


def tiny_vit(seed: int = 0, channels: int = 1) -> VisionTransformer:
    """Return a transformer of two blocks with patches of 4³ voxels."""
    torch.manual_seed(seed)
    return build_encoder(ENCODER, channels)


def batch(
    labels: Sequence[float],
    *,
    patient_labels: Sequence[float] | None = None,
    has_mask: Sequence[bool] | None = None,
    has_pair: Sequence[bool] | None = None,
    side: int = 12,
    channels: int = 1,
    seed: int = 0,
    **fields: Any,
) -> LabelledBatch:
    """Return windows of `side`³ voxels at 3 mm; a lesion of 4³ voxels stands in those that are labelled 1.

    The paired scan shows the lesion plainly, the scan itself faintly and in noise. has_pair None: no pairs in the run.
    """
    count, generator = len(labels), torch.Generator().manual_seed(seed)
    known = torch.tensor(labels, dtype=torch.float32)[:, None]
    mask = torch.zeros(count, side, side, side)
    for row in range(count):
        if labels[row] == 1:
            z, y, x = (1 + 2 * torch.randint(0, (side - 6) // 2, (3,), generator=generator)).tolist()
            mask[row, z : z + 4, y : y + 4, x : x + 4] = 1.0
    noise = 0.3 * torch.randn((count, channels, side, side, side), generator=generator)
    paired = None
    if has_pair is not None:
        there = torch.tensor(has_pair)
        paired = (noise.flip(0) + 2 * mask[:, None]) * there.view(-1, 1, 1, 1, 1)
    values: dict[str, Any] = {
        "volumes": noise + mask[:, None],
        "spacing": torch.full((count, 3), 3.0),
        "labels": known,
        "patient_labels": known if patient_labels is None else torch.tensor(patient_labels)[:, None],
        "mask": mask,
        "valid": torch.ones(count, side, side, side),
        "has_mask": torch.tensor([True] * count if has_mask is None else list(has_mask)),
        "paired": paired,
        "has_pair": torch.tensor([False] * count if has_pair is None else list(has_pair)),
        "pair_weight": torch.tensor([0.0] * count if has_pair is None else [float(p) for p in has_pair]),
        "bags": torch.arange(count),
        "draws": torch.arange(count),
        "entries": [f"series-{row}" for row in range(count)],
        "kinds": ["uniform"] * count,
    }
    return LabelledBatch(**{**values, **fields})

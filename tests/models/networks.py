"""Small encoders and inputs for the tests of downstream networks."""

from typing import Any

import torch
from torch import Tensor

from fmct.models.vision_transformer import VisionTransformer


def tiny_encoder(**settings: Any) -> VisionTransformer:
    """Return a seeded encoder of four blocks, 24 wide, patch (2, 4, 4), LayerScale large enough to matter."""
    torch.manual_seed(3)
    layout: dict[str, Any] = {"in_channels": 1, "patch_size": (2, 4, 4), "embed_dim": 24, "depth": 4, "num_heads": 2}
    encoder = VisionTransformer(**{**layout, "layer_scale": 0.5, **settings})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

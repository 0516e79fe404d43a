"""Encoders by name: their sizes, their configuration, and the builder.

Parameter counts are those of the defaults (rotary positions, 4 registers, LayerScale, mask token) without a classifier.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fmct.errors import ConfigError
from fmct.models.vision_transformer import EncoderOutput, VisionTransformer

__all__ = [
    "SIZES",
    "EncoderConfig",
    "EncoderOutput",
    "VisionTransformer",
    "build_encoder",
    "fmhct_vit_base",
    "vit_base",
    "vit_giant",
    "vit_large",
    "vit_small",
    "vit_tiny",
]

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "giant": (1536, 40, 24),
}
"""Embedding width, blocks, attention heads of each size; a head always has 64 dimensions."""


def vit_tiny(**settings: Any) -> VisionTransformer:
    """Return a ViT-Ti: 192 wide, 12 blocks, 3 heads; 6,131,136 parameters at patch 16 with one channel."""
    return _sized("tiny", settings)


def vit_small(**settings: Any) -> VisionTransformer:
    """Return a ViT-S: 384 wide, 12 blocks, 6 heads; 22,879,104 parameters at patch 16 with one channel."""
    return _sized("small", settings)


def vit_base(**settings: Any) -> VisionTransformer:
    """Return a ViT-B: 768 wide, 12 blocks, 12 heads; 88,225,536 parameters at patch 16 with one channel."""
    return _sized("base", settings)


def vit_large(**settings: Any) -> VisionTransformer:
    """Return a ViT-L: 1024 wide, 24 blocks, 16 heads; 306,562,048 parameters at patch 16 with one channel."""
    return _sized("large", settings)


def vit_giant(**settings: Any) -> VisionTransformer:
    """Return a ViT-g: 1536 wide, 40 blocks, 24 heads; 1,139,688,960 parameters at patch 16 with one channel."""
    return _sized("giant", settings)


def fmhct_vit_base(**settings: Any) -> VisionTransformer:
    """Return the layout of the published head-CT model (FM-HCT): 89,404,416 parameters.

    Patch 12, three windows, learned positions on 8 x 8 x 8 tokens that start as sin-cos, no bias on queries, keys and
    values (with it 89,432,064), no registers (with bias and four of them 89,435,136), no LayerScale, no mask token.
    """
    layout: dict[str, Any] = {
        "in_channels": 3,
        "patch_size": 12,
        "num_registers": 0,
        "position": "learned",
        "position_initial": "sincos",
        "grid_size": 8,
        "qkv_bias": False,
        "layer_scale": None,
        "mask_token": False,
        "norm_eps": 1e-5,
        "final_norm_eps": 1e-6,
    }
    return _sized("base", {**layout, **settings})


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder of an experiment. See VisionTransformer for what each key does.

    `embed_dim`, `depth` and `num_heads` override those of `size` where given; `grid_size` is for learned positions.
    """

    size: str = "base"
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    patch_size: list[int] = field(default_factory=lambda: [16, 16, 16])
    num_registers: int = 4
    mlp_ratio: float = 4.0
    position: str = "rope"
    position_initial: str = "normal"
    grid_size: list[int] | None = None
    sincos_unit: str = "patch"
    rope_min_period_mm: float = 32.0
    rope_max_period_mm: float = 1600.0
    rope_rescale: float = 1.0
    rope_jitter: float = 1.0
    rope_unit: str = "mm"
    position_offset: float = 0.0
    qkv_bias: bool = True
    layer_scale: float | None = 1e-5
    drop_path: float = 0.0
    swiglu: bool = False
    mask_token: bool = True
    activation_checkpointing: bool = False
    norm_eps: float = 1e-6
    final_norm_eps: float = 1e-6


def dimensions(config: EncoderConfig) -> tuple[int, int, int]:
    """Return (embed_dim, depth, num_heads) of a config. Raises ConfigError for an unknown size."""
    if config.size not in SIZES:
        raise ConfigError(f"encoder size: expected one of {', '.join(SIZES)}, got {config.size!r}.")
    width, depth, heads = SIZES[config.size]
    return config.embed_dim or width, config.depth or depth, config.num_heads or heads


def build_encoder(
    config: EncoderConfig, in_channels: int, spacing_mm: float | Sequence[float] = 1.0, *, seed: int = 0
) -> VisionTransformer:
    """Return a config's encoder for `in_channels` windows and crops of `spacing_mm` (z, y, x). Raises ConfigError."""
    embed_dim, depth, num_heads = dimensions(config)
    settings = {
        key: value for key, value in vars(config).items() if key not in ("size", "embed_dim", "depth", "num_heads")
    }
    return VisionTransformer(
        in_channels=in_channels,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        spacing_mm=spacing_mm,
        seed=seed,
        **settings,
    )


def _sized(size: str, settings: dict[str, Any]) -> VisionTransformer:
    embed_dim, depth, num_heads = SIZES[size]
    return VisionTransformer(**{"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, **settings})

"""Features from several depths of an encoder, as maps: what dense decoders read and what phases are compared on."""

from typing import NamedTuple

from torch import Tensor

from fmct.errors import ConfigError
from fmct.models.patches import PatchEmbed
from fmct.models.vision_transformer import VisionTransformer


class Features(NamedTuple):
    """maps: (B, C, d, h, w) from shallow to deep. cls: (B, E) summary token, None for networks without one."""

    maps: list[Tensor]
    cls: Tensor | None


def tapped_blocks(depth: int, taps: int) -> list[int]:
    """Return the `taps` block numbers at equal shares of the depth, the last block among them: 4 → ¼, ½, ¾, 1.

    Raises ConfigError when there are fewer blocks than taps.
    """
    if not 1 <= taps <= depth:
        raise ConfigError(f"taps: expected 1 to {depth}, the encoder's blocks, got {taps}.")
    return [-(-depth * k // taps) - 1 for k in range(1, taps + 1)]


def tap(
    encoder: VisionTransformer,
    x: Tensor,
    *,
    taps: int,
    spacing: Tensor | None = None,
    drop_path_keys: Tensor | None = None,
    patch_embed: PatchEmbed | None = None,
) -> Features:
    """Return `taps` normalised maps (B, E, gd, gh, gw) and the final CLS of (B, C, D, H, W) volumes.

    Every map goes through the encoder's final norm, so that depths have one scale; the last one holds the encoder's
    own patch tokens. CLS and registers are in no map.
    """
    tokens, maps = encoder.forward_intermediates(
        x,
        tapped_blocks(encoder.depth, taps),
        norm=True,
        spacing=spacing,
        drop_path_keys=drop_path_keys,
        patch_embed=patch_embed,
    )
    return Features(maps, tokens[:, 0])

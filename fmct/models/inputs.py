"""What an encoder is given, checked: groups of equally large crops with their spacing, masks and keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fmct.errors import ConfigError
from fmct.shapes import Triple, patch_grid

T = TypeVar("T")


@dataclass(frozen=True)
class CropGroup:
    """Crops of one size: volume (B, C, D, H, W), spacing (B, 3) mm, mask (B, N) bool, keys (B,) int64, token grid."""

    volume: Tensor
    spacing: Tensor | None
    mask: Tensor | None
    keys: Tensor | None
    grid: Triple


def crop_groups(
    volumes: Sequence[Tensor],
    spacings: Sequence[Tensor | None] | None,
    masks: Sequence[Tensor | None] | None,
    keys: Sequence[Tensor | None] | None,
    *,
    in_channels: int,
    patch_size: Triple,
) -> list[CropGroup]:
    """Return the groups of a forward pass; None stands for None in every group. Raises ConfigError on any misfit."""
    if not volumes:
        raise ConfigError("expected at least one group of crops, got none.")
    return [
        _group(*parts, in_channels=in_channels, patch_size=patch_size)
        for parts in zip(
            volumes,
            _each(spacings, len(volumes), "spacings"),
            _each(masks, len(volumes), "masks"),
            _each(keys, len(volumes), "drop_path_keys"),
            strict=True,
        )
    ]


def require_keys(groups: Sequence[CropGroup]) -> None:
    """Raise ConfigError unless every group has keys: drop-path and rescaled positions draw by nothing else."""
    for group in groups:
        if group.keys is None:
            raise ConfigError(
                "drop-path and random rescaling of positions draw by key in training: expected drop_path_keys, one "
                f"integer for each of {group.volume.shape[0]} crops, got none. Give the crops' draws, or build the "
                "encoder with drop_path=0, rope_rescale=1 and rope_jitter=1."
            )


def _each(given: Sequence[T | None] | None, count: int, name: str) -> Sequence[T | None]:
    """Return one value for each group."""
    if given is None:
        return [None] * count
    if len(given) != count:
        raise ConfigError(f"{name}: expected one for each of {count} groups of crops, got {len(given)}.")
    return given


def _group(
    volume: Tensor,
    spacing: Tensor | None,
    mask: Tensor | None,
    keys: Tensor | None,
    *,
    in_channels: int,
    patch_size: Triple,
) -> CropGroup:
    if volume.ndim != 5 or volume.shape[1] != in_channels:
        raise ConfigError(
            f"expected a volume (B, {in_channels}, D, H, W), its channels being the intensity windows that the encoder "
            f"was built for, got a tensor of shape {tuple(volume.shape)}."
        )
    crops = volume.shape[0]
    grid = patch_grid(volume.shape[2:], patch_size)
    tokens = grid[0] * grid[1] * grid[2]
    if spacing is not None and spacing.shape != (crops, 3):
        raise ConfigError(f"spacing: expected ({crops}, 3), (z, y, x) in mm of each crop, got {tuple(spacing.shape)}.")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (crops, tokens)):
        raise ConfigError(
            f"mask: expected ({crops}, {tokens}) booleans, one for each patch of each crop, got {tuple(mask.shape)} of "
            f"{mask.dtype}."
        )
    if keys is not None and (keys.dtype != torch.int64 or keys.shape != (crops,)):
        raise ConfigError(f"drop_path_keys: expected ({crops},) int64, got {tuple(keys.shape)} of {keys.dtype}.")
    return CropGroup(volume, spacing, mask, keys, grid)

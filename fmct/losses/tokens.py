"""Masks and validity on the token grid: how much of each token is known, and how much of that is lesion.

Averages over the true stride, never the nearest voxel: a clot smaller than a token stays a small fraction instead of
vanishing or filling its token. fmct's definition for CPMN-style heads; the paper's is not published in reach.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from fmct.errors import ConfigError
from fmct.losses.precision import as_float
from fmct.shapes import Triple, triple

VALID_SHARE = 0.5  # a token is valid when at least this share of its voxels is
LEAST_CELL_MM = 4.0  # good registration of NCT and CTPA leaves about 3.4 mm


def token_fractions(
    mask: Tensor, valid: Tensor, stride: int | Sequence[int], *, grid: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return (v, r), each (B, 1, gd, gh, gw) float: the valid share of every token, and the lesion share of that.

    mask, valid: (B, D, H, W) or (B, 1, D, H, W) with values in [0, 1]. stride: voxels a token (z, y, x). grid: the
    tokens a side where the features were made from a padded volume; by default as many as cover the volume. What lies
    beyond the volume, at its far end, is invalid. Raises ConfigError for shapes that do not fit.
    """
    mask, valid = _channelled(mask), _channelled(valid)
    if mask.shape != valid.shape:
        raise ConfigError(f"mask {tuple(mask.shape)} and valid {tuple(valid.shape)} must have one shape.")
    strides = triple(stride, "stride")
    tokens = triple(grid, "grid") if grid is not None else _covering(mask.shape[2:], strides)
    missing = [t * s - n for t, s, n in zip(tokens, strides, mask.shape[2:], strict=True)]
    if min(missing) < 0:
        raise ConfigError(
            f"a grid of {tokens} tokens with stride {strides} does not cover {tuple(mask.shape[2:])} voxels (z, y, x): "
            "give the stride and grid of the features that the mask is compared with."
        )
    beyond = (0, missing[2], 0, missing[1], 0, missing[0])
    known = pad(as_float(valid), beyond)
    v = avg_pool3d(known, strides)
    lesion = avg_pool3d(known * pad(as_float(mask), beyond), strides)
    # Clamped far below the share of one voxel, so that a token without a valid voxel has no lesion either.
    return v, lesion / v.clamp(min=1e-12)


def token_map(given: Tensor | None, like: Tensor, name: str) -> Tensor | None:
    """Return (B, N) float values of a (B, 1, gd, gh, gw) or (B, gd, gh, gw) map on the grid of `like` (B, C, …).

    Raises ConfigError for another shape.
    """
    if given is None:
        return None
    grid = (len(like), *like.shape[2:])
    shape = (given.shape[0], *given.shape[2:]) if given.ndim == like.ndim and given.shape[1] == 1 else given.shape
    if tuple(shape) != tuple(grid):
        raise ConfigError(
            f"{name}: expected one value a token, {(grid[0], 1, *grid[1:])} or {tuple(grid)}, got {tuple(given.shape)}."
        )
    return as_float(given.to(like.device)).reshape(grid[0], prod(grid[1:]))


def valid_tokens(valid: Tensor | None, features: Tensor) -> Tensor:
    """Return (B, N) bool: which tokens of (B, C, gd, gh, gw) features are valid, at least half of each; None is all."""
    share = token_map(valid, features, "valid")
    if share is None:
        return torch.ones(len(features), prod(features.shape[2:]), dtype=torch.bool, device=features.device)
    return share >= VALID_SHARE


def small_cell(spacing_mm: Sequence[float], stride: int | Sequence[int]) -> str | None:
    """Return what to warn of when a token is smaller than the error that registration leaves, else None.

    spacing_mm: of the voxels (z, y, x). A side below 4 mm compares features of different places.
    """
    sides = [s * k for s, k in zip(spacing_mm, triple(stride, "stride"), strict=True)]
    if min(sides) >= LEAST_CELL_MM:
        return None
    text = " × ".join(f"{side:g}" for side in sides)
    return (
        f"features of {text} mm (z, y, x) are aligned between phases, but good registration leaves 3 to 4 mm: expected "
        f"at least {LEAST_CELL_MM:g} mm a side; take a coarser level or allow a tolerance of one token."
    )


def _channelled(voxels: Tensor) -> Tensor:
    if voxels.ndim == 4:
        voxels = voxels[:, None]
    if voxels.ndim != 5 or voxels.shape[1] != 1:
        raise ConfigError(f"a mask is (B, D, H, W) or (B, 1, D, H, W); got {tuple(voxels.shape)}.")
    return voxels


def _covering(size: Sequence[int], stride: Triple) -> Triple:
    d, h, w = (-(-n // k) for n, k in zip(size, stride, strict=True))
    return (d, h, w)

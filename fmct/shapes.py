"""Small arithmetic and checks on shapes. Every triple in fmct is (z, y, x)."""

from collections.abc import Sequence

from fmct.errors import ConfigError

Triple = tuple[int, int, int]
TripleF = tuple[float, float, float]


def triple(value: int | Sequence[int], name: str) -> Triple:
    """Return `value` as three integers (z, y, x); one integer is repeated. Raises ConfigError for any other length."""
    if isinstance(value, int):
        return (value, value, value)
    items = tuple(int(v) for v in value)
    if len(items) != 3:
        raise ConfigError(f"{name}: expected one integer or three (z, y, x), got {list(value)}.")
    return (items[0], items[1], items[2])


def triple_of_floats(value: float | Sequence[float], name: str) -> TripleF:
    """Return `value` as three floats (z, y, x); one number is repeated. Raises ConfigError for any other length."""
    if isinstance(value, (int, float)):
        return (float(value), float(value), float(value))
    items = tuple(float(v) for v in value)
    if len(items) != 3:
        raise ConfigError(f"{name}: expected one number or three (z, y, x), got {list(value)}.")
    return (items[0], items[1], items[2])


def patch_grid(size: Sequence[int], patch_size: Sequence[int]) -> Triple:
    """Return the token grid (z, y, x) of an image of `size` voxels. Raises ConfigError unless every axis divides."""
    if any(s % p or s < p for s, p in zip(size, patch_size, strict=True)):
        raise ConfigError(
            f"an image of {tuple(size)} voxels does not divide into patches of {tuple(patch_size)} (z, y, x): "
            "choose a size that is a multiple of the patch on every axis."
        )
    d, h, w = (s // p for s, p in zip(size, patch_size, strict=True))
    return (d, h, w)

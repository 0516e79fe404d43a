"""Masks of patch tokens: cuboid blocks completed to an exact count, keyed by (seed, draw, view)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor

import numpy as np
import torch

from fmct import randomness
from fmct.errors import ConfigError
from fmct.shapes import Triple

_SCALE = 1 << 32  # probabilities as integers over 2^32, so that counts of masked views are exact for any draw
_TRIES = 10  # blocks tried in vain before the mask is completed with single patches, as in iBOT and DINOv2


@dataclass(frozen=True)
class MaskingConfig:
    """Which share of the global views is masked, and how.

    probability: share of global views with a mask (0: none). ratio: range of the masked share of a view's patches.
    shape: cuboid or random. aspect: range of a block's two side ratios, log-uniform. smallest: patches in a block, at
    least. largest: share of the grid that one block may take.
    """

    probability: float = 0.5
    ratio: list[float] = field(default_factory=lambda: [0.1, 0.5])
    shape: str = "cuboid"
    aspect: list[float] = field(default_factory=lambda: [0.3, 1 / 0.3])
    smallest: int = 4
    largest: float = 0.5


def check_masking(config: MaskingConfig) -> None:
    """Raise ConfigError where a value cannot be."""
    if not 0 <= config.probability <= 1:
        raise ConfigError(f"masking.probability: expected a share in 0 … 1, got {config.probability}.")
    if len(config.ratio) != 2 or not 0 < config.ratio[0] <= config.ratio[1] < 1:
        raise ConfigError(f"masking.ratio: expected [low, high] with 0 < low ≤ high < 1, got {config.ratio}.")
    if config.shape not in ("cuboid", "random"):
        raise ConfigError(f"masking.shape: expected cuboid or random, got {config.shape!r}.")
    if len(config.aspect) != 2 or not 0 < config.aspect[0] <= config.aspect[1]:
        raise ConfigError(f"masking.aspect: expected [low, high] with 0 < low ≤ high, got {config.aspect}.")
    if config.smallest < 1 or not 0 < config.largest <= 1:
        raise ConfigError("masking: smallest must be ≥ 1 and largest a share in 0 … 1.")


def masked_counts(config: MaskingConfig, patches: int, *, seed: int, draw: int, views: int) -> list[int]:
    """Return the number of masked patches of each global view of a draw, 0 for a view without a mask.

    Over any run of draws the number of masked views is the configured share to within one, and their ratios cover the
    range evenly: both come from sequences in `draw`, never from a batch.
    """
    share = round(config.probability * _SCALE)
    offset = randomness.word(seed, "masked views") % _SCALE
    first = (draw * views * share + offset) // _SCALE
    masked = ((draw + 1) * views * share + offset) // _SCALE - first
    order = randomness.permutation(views, seed, draw, "which views are masked")
    counts = [0] * views
    for number, view in enumerate(order[:masked]):
        place = randomness.low_discrepancy(first + number, seed, "mask ratio")
        ratio = config.ratio[0] + place * (config.ratio[1] - config.ratio[0])
        counts[int(view)] = min(max(1, round(ratio * patches)), patches - 1)
    return counts


def most_masked_patches(config: MaskingConfig, patches: int, *, views: int, draws: int) -> int:
    """Return a bound on the masked patches in any `draws` consecutive draws of `views` global views.

    The least upper bound over all offsets of the ratio sequence, so that buffers of this length are nearly full.
    """
    share = round(config.probability * _SCALE)
    masked = -(-(draws * views * share) // _SCALE)
    if masked == 0:
        return 0
    steps = np.array([randomness.low_discrepancy(i, 0) for i in range(masked)])
    # The sum of the fractional parts is largest just before one of its members wraps around.
    sums = np.mod(steps[None, :] - steps[:, None] - 1e-12, 1).sum(axis=1)
    low, high = config.ratio
    per_view = min(max(1, round(high * patches)), patches - 1)
    bound = floor(patches * (low * masked + (high - low) * float(sums.max())) + 0.5 * masked + 1)
    return min(bound, masked * per_view)


def cuboid_mask(
    grid: Triple,
    count: int,
    *,
    random: np.random.Generator,
    aspect: Sequence[float] = (0.3, 1 / 0.3),
    smallest: int = 4,
    largest: float = 0.5,
) -> np.ndarray:
    """Return a bool mask of shape `grid` with exactly `count` true patches, made of cuboid blocks.

    A block's volume is uniform in [smallest, what is missing], its two side ratios are log-uniform. It is placed
    uniformly where it touches the grid and then moved inside, so that patches at the border are not spared. After 10
    blocks that do not fit, single patches complete the count.
    """
    mask = np.zeros(grid, dtype=bool)
    assert 0 <= count <= mask.size, f"{count} of {mask.size} patches cannot be masked"
    missing, failures = count, 0
    while missing >= smallest and failures < _TRIES:
        most = min(missing, max(smallest, int(largest * mask.size)))
        block = _block(grid, smallest, most, aspect, random)
        new = int(np.count_nonzero(~mask[block])) if block is not None else 0
        if block is not None and 0 < new <= missing:
            mask[block] = True
            missing, failures = missing - new, 0
        else:
            failures += 1
    if missing:
        free = np.flatnonzero(~mask.reshape(-1))
        mask.reshape(-1)[random.permutation(free)[:missing]] = True
    return mask


def _block(
    grid: Triple, smallest: int, most: int, aspect: Sequence[float], random: np.random.Generator
) -> tuple[slice, ...] | None:
    """Return a cuboid of about smallest … most patches, None when it does not fit into the grid."""
    values = random.random(6)
    volume = smallest + values[0] * (most - smallest)
    first, second = (aspect[0] * (aspect[1] / aspect[0]) ** value for value in values[1:3])
    # Sides d : h : w with h/d = first and w/h = second.
    d = (volume / (first * first * second)) ** (1 / 3)
    sides = [max(1, round(side)) for side in (d, d * first, d * first * second)]
    if any(side > n for side, n in zip(sides, grid, strict=True)):
        return None
    begins = [
        min(max(int(place * (n + side - 1)) - side + 1, 0), n - side)
        for place, n, side in zip(values[3:], grid, sides, strict=True)
    ]
    return tuple(slice(begin, begin + side) for begin, side in zip(begins, sides, strict=True))


def random_mask(grid: Triple, count: int, *, random: np.random.Generator) -> np.ndarray:
    """Return a bool mask of shape `grid` with exactly `count` true patches, drawn uniformly."""
    mask = np.zeros(grid, dtype=bool)
    mask.reshape(-1)[random.permutation(mask.size)[:count]] = True
    return mask


def sample_masks(config: MaskingConfig, grid: Triple, *, seed: int, draws: Sequence[int], views: int) -> torch.Tensor:
    """Return masks (views, draws, N) bool of the draws' global views, exact in count; N patches of the grid."""
    patches = int(np.prod(grid))
    masks = np.zeros((views, len(draws), patches), dtype=bool)
    for column, draw in enumerate(draws):
        for view, count in enumerate(masked_counts(config, patches, seed=seed, draw=draw, views=views)):
            if count:
                random = randomness.generator(seed, draw, view, "mask")
                masks[view, column] = _mask(config, grid, count, random).reshape(-1)
    return torch.from_numpy(masks)


def _mask(config: MaskingConfig, grid: Triple, count: int, random: np.random.Generator) -> np.ndarray:
    if config.shape == "random":
        return random_mask(grid, count, random=random)
    return cuboid_mask(
        grid, count, random=random, aspect=config.aspect, smallest=config.smallest, largest=config.largest
    )

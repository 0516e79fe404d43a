import time

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from fmct.data.masking import (
    MaskingConfig,
    check_masking,
    cuboid_mask,
    masked_counts,
    most_masked_patches,
    sample_masks,
)
from fmct.errors import ConfigError
from fmct.randomness import generator

GRIDS = [(6, 6, 6), (7, 7, 7), (4, 12, 12), (12, 12, 12), (1, 8, 8), (2, 2, 2)]


@pytest.mark.parametrize("grid", GRIDS)
def test_counts_are_exact(grid: tuple[int, int, int]) -> None:
    total = int(np.prod(grid))
    for count in sorted({0, 1, 2, total // 10, total // 2, total - 1, total}):
        for key in range(5):
            assert cuboid_mask(grid, count, random=generator(0, key)).sum() == count


def test_masks_are_blocks_and_random_ones_are_not() -> None:
    """Masked patches have masked neighbours far more often in blocks than by chance."""

    def neighbours(mask: np.ndarray) -> float:
        return float((mask[1:] & mask[:-1]).sum() / mask[1:].sum())

    blocks = [neighbours(cuboid_mask((8, 8, 8), 150, random=generator(0, k))) for k in range(50)]
    config = MaskingConfig(probability=1.0, ratio=[0.3, 0.3], shape="random")
    random = [
        neighbours(m.view(8, 8, 8).numpy())
        for m in sample_masks(config, (8, 8, 8), seed=0, draws=range(50), views=1)[0]
    ]
    assert np.mean(blocks) > 0.6
    assert abs(np.mean(random) - 0.3) < 0.05
    components = [label(cuboid_mask((8, 8, 8), 150, random=generator(0, k)))[1] for k in range(50)]
    assert np.median(components) <= 8


def test_every_patch_is_masked_equally_often_to_within_a_factor() -> None:
    config = MaskingConfig(probability=1.0)
    masks = sample_masks(config, (6, 6, 6), seed=0, draws=range(400), views=1)[0].float().mean(0)
    assert abs(masks.mean().item() - 0.3) < 0.01
    assert masks.min() > 0.12  # corners lie in fewer blocks
    assert masks.max() < 0.5


def test_ratios_are_uniform_and_half_of_the_views_are_masked() -> None:
    config = MaskingConfig(probability=0.5, ratio=[0.1, 0.5])
    counts = np.array([masked_counts(config, 1000, seed=3, draw=d, views=2) for d in range(256)])
    assert ((counts > 0).sum(axis=1) == 1).all()
    assert 80 < (counts[:, 0] > 0).sum() < 176
    ratios = np.sort(counts[counts > 0]) / 1000
    assert np.abs(ratios - np.linspace(0.1, 0.5, 256)).max() < 0.006  # even, not merely uniform in the mean


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 0.75, 1.0])
def test_the_share_of_masked_views_holds_in_any_run_of_draws(probability: float) -> None:
    config = MaskingConfig(probability=probability)
    masked = np.array([sum(c > 0 for c in masked_counts(config, 64, seed=1, draw=d, views=2)) for d in range(200)])
    for length in (1, 3, 10, 64):
        sums = np.convolve(masked, np.ones(length), "valid")
        assert np.abs(sums - 2 * length * probability).max() < 1 + 1e-9


@pytest.mark.parametrize("draws", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("probability", [0.5, 0.7, 1.0])
def test_the_bound_holds_and_is_tight(draws: int, probability: float) -> None:
    config = MaskingConfig(probability=probability)
    bound = most_masked_patches(config, 216, views=2, draws=draws)
    most = 0
    for seed in range(4):
        counts = [sum(masked_counts(config, 216, seed=seed, draw=d, views=2)) for d in range(200)]
        most = max(most, int(np.convolve(counts, np.ones(draws), "valid").max()))
    assert 0.9 * bound <= most <= bound


def test_masks_depend_on_seed_draw_and_view_only() -> None:
    config = MaskingConfig(probability=1.0)
    masks = sample_masks(config, (6, 6, 6), seed=0, draws=[10, 11, 12], views=2)
    assert masks.shape == (2, 3, 216)
    assert torch.equal(masks[:, 1:2], sample_masks(config, (6, 6, 6), seed=0, draws=[11], views=2))
    assert not torch.equal(masks[:, 1], masks[:, 2])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks, sample_masks(config, (6, 6, 6), seed=1, draws=[10, 11, 12], views=2))


def test_a_mask_takes_less_than_a_millisecond() -> None:
    for grid in [(6, 6, 6), (12, 12, 12)]:
        seconds = []
        for key in range(60):
            start = time.thread_time()
            cuboid_mask(grid, int(np.prod(grid)) // 2, random=generator(0, key))
            seconds.append(time.thread_time() - start)
        assert np.median(seconds) < 1e-3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"probability": 1.2}, "probability"),
        ({"ratio": [0.5, 0.1]}, "ratio"),
        ({"shape": "sphere"}, "sphere"),
        ({"aspect": [0.0, 1.0]}, "aspect"),
        ({"smallest": 0}, "smallest"),
    ],
)
def test_mistakes_are_named(change: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_masking(MaskingConfig(**change))

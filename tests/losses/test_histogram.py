"""Patch histograms and their cross-entropy against loops."""

import numpy as np
import torch

from fmct.losses.histogram import histogram_loss, mean_over_ranks, neighbourhood_histograms, patch_histograms


def slow_histogram(values: np.ndarray, bins: int) -> np.ndarray:
    """One patch of one window: each voxel goes to its two nearest centres."""
    counts = np.zeros(bins)
    for value in np.clip(values, 0, 1) * (bins - 1):
        low = min(int(np.floor(value)), bins - 2)
        counts[low] += 1 - (value - low)
        counts[low + 1] += value - low
    return counts / len(values)


def test_histograms_equal_a_loop_and_sum_to_one():
    values = torch.rand(5, 2 * 27, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    found = patch_histograms(values, channels=2, bins=6)
    assert found.shape == (5, 2, 6)
    torch.testing.assert_close(found.sum(-1), torch.ones(5, 2))
    for row in range(5):
        for channel in range(2):
            wanted = slow_histogram(values[row, channel * 27 : (channel + 1) * 27].numpy(), 6)
            np.testing.assert_allclose(found[row, channel], wanted, atol=1e-6)


def test_a_neighbourhood_is_the_mean_of_the_cube_around_a_patch_and_ends_at_the_view():
    grid = (2, 3, 4)
    own = torch.rand(2, 24, 1, 5, generator=torch.Generator().manual_seed(2))
    found = neighbourhood_histograms(own, grid, 3)
    volume = own.view(2, *grid, 1, 5)
    for z in range(2):
        for y in range(3):
            for x in range(4):
                cube = volume[:, max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                torch.testing.assert_close(found[:, (z * 3 + y) * 4 + x], cube.mean((1, 2, 3)))
    assert neighbourhood_histograms(own, grid, 1) is own


def test_the_loss_is_a_cross_entropy_that_is_least_at_the_target():
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(4, 3, 5, generator=generator).softmax(-1).double()
    logits = target.log().requires_grad_()
    loss = histogram_loss(logits, target)
    torch.testing.assert_close(loss, -(target * target.log()).sum(-1).mean(-1))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    assert torch.autograd.gradcheck(
        lambda x: histogram_loss(x, target), (torch.randn(4, 3, 5).double().requires_grad_(),)
    )


def test_the_mean_takes_chosen_entries_only_and_none_is_zero():
    values = torch.tensor([[1.0, 2.0], [5.0, 9.0]])
    where = torch.tensor([[True, False], [False, True]])
    assert mean_over_ranks(values, where).item() == 5.0
    assert mean_over_ranks(values, torch.zeros_like(where)).item() == 0.0

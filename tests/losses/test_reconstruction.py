import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.reconstruction import normalise_patches, reconstruction_loss
from tests.losses import references_objectives as slow


@pytest.mark.parametrize("distance", ["l1", "l2", "smooth-l1"])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_value_and_gradient_are_those_of_the_loop(distance, rows, beta):
    generator = torch.Generator().manual_seed(rows)
    prediction = torch.randn(rows, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    fast = reconstruction_loss(prediction, target, distance=distance, beta=beta)
    expected = slow.reconstruction(prediction, target, distance, beta)
    torch.testing.assert_close(fast, expected, rtol=1e-12, atol=0)
    (got,), (wanted,) = torch.autograd.grad(fast, prediction), torch.autograd.grad(expected, prediction)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


def test_the_denominator_is_that_of_mae_and_of_simmim():
    generator = torch.Generator().manual_seed(0)
    volume, guess = torch.rand(2, 5, 12, generator=generator), torch.rand(2, 5, 12, generator=generator)  # 3 channels
    mask = torch.rand(2, 5, generator=generator) < 0.5
    mae = (((guess - volume) ** 2).mean(-1) * mask).sum() / mask.sum()
    torch.testing.assert_close(reconstruction_loss(guess[mask], volume[mask], distance="l2"), mae)
    simmim = ((guess - volume).abs() * mask[..., None]).sum() / (mask.sum() * 4) / 3
    torch.testing.assert_close(reconstruction_loss(guess[mask], volume[mask], distance="l1"), simmim)


def test_no_masked_patch_gives_zero_with_a_gradient_path():
    prediction = torch.zeros(0, 8, requires_grad=True)
    loss = reconstruction_loss(prediction, torch.zeros(0, 8))
    loss.backward()
    assert loss.item() == 0.0


def test_patches_are_standardised_per_channel_and_air_stays_quiet():
    generator = torch.Generator().manual_seed(0)
    tissue = torch.rand(3, 2, 64, generator=generator) * torch.tensor([1.0, 0.3])[:, None]
    got = normalise_patches(tissue.flatten(1), channels=2, floor=1e-4).view(3, 2, 64)
    torch.testing.assert_close(got.mean(-1), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.std(-1, unbiased=False), torch.ones(3, 2), atol=1e-4, rtol=0)
    air = 1e-4 * torch.randn(1, 64, generator=generator)
    assert normalise_patches(air, channels=1).abs().max() < 0.05
    assert normalise_patches(torch.full((1, 64), 0.25), channels=1).abs().max() < 1e-5


def test_an_unknown_distance_and_unequal_shapes_are_refused():
    with pytest.raises(ConfigError, match="l1, l2 or smooth-l1"):
        reconstruction_loss(torch.zeros(1, 2), torch.zeros(1, 2), distance="l3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="equal shapes"):
        reconstruction_loss(torch.zeros(1, 2), torch.zeros(2, 2))

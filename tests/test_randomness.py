import numpy as np
import pytest
import torch

from fmct import randomness
from fmct.errors import ConfigError


def splitmix(position: int, key: int) -> int:
    """SplitMix64 with Python's integers, as published."""
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 5, 2**63, 2**64 - 1])
def test_noise_is_the_sum_of_the_bytes_of_splitmix(key: int) -> None:
    noise = randomness.gaussian_noise((40_000,), key)  # more than one block
    for position in (0, 1, 2, 32_767, 32_768, 39_999):
        total = sum(splitmix(position, key).to_bytes(8, "little"))
        assert noise[position].item() == pytest.approx((total - 1020) / (8 * 65535 / 12) ** 0.5, abs=1e-6)


def test_noise_is_normal_independent_and_keyed() -> None:
    noise = randomness.gaussian_noise((64, 64, 64), 7)
    other = randomness.gaussian_noise((64, 64, 64), 8)
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.var().item() - 1) < 0.01
    assert abs((noise**4).mean().item() - 2.85) < 0.05
    for a, b in ((noise[1:], noise[:-1]), (noise[..., 1:], noise[..., :-1]), (noise, other)):
        assert abs((a * b).mean().item()) < 0.01
    # The leading part of a larger image is the same: a position's number does not depend on the image's size.
    assert torch.equal(randomness.gaussian_noise((1000,), 7), noise.view(-1)[:1000])


def test_generators_are_functions_of_their_key() -> None:
    first = randomness.generator(3, 10, 1, "mask").random(4)
    assert np.array_equal(first, randomness.generator(3, 10, 1, "mask").random(4))
    for other in ((4, 10, 1, "mask"), (3, 11, 1, "mask"), (3, 10, 2, "mask"), (3, 10, 1, "noise"), (3, 10, 1)):
        assert not np.array_equal(first, randomness.generator(*other).random(4))


def test_nothing_is_taken_from_or_given_to_the_global_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    randomness.gaussian_noise((10,), 1)
    randomness.generator(0, 1).random()
    assert torch.equal(before, torch.get_rng_state())


def test_low_discrepancy_covers_evenly_wherever_it_starts() -> None:
    for start in (0, 999, 10**12):
        values = np.sort([randomness.low_discrepancy(i, 0, "x") for i in range(start, start + 64)])
        gaps = np.diff(np.concatenate([values, values[:1] + 1]))
        assert gaps.max() < 2.7 / 64
        assert 0 <= values.min() <= values.max() < 1


def test_permutation_is_one() -> None:
    order = randomness.permutation(100, 0, "order", 3)
    assert sorted(order) == list(range(100))
    assert not np.array_equal(order, randomness.permutation(100, 0, "order", 4))


def test_negative_seed_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="seed"):
        randomness.generator(-1, 0)

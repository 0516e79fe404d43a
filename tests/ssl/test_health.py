import math

import pytest
import torch

from fmct.ssl.health import entropy, feature_spread, mean_cosine, perplexity, rank_me
from tests.losses import references_objectives as slow


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_entropy_and_perplexity():
    assert entropy(torch.tensor([1.0, 0.0, 0.0])).item() == 0.0
    torch.testing.assert_close(entropy(torch.full((2, 8), 1 / 8)), torch.full((2,), math.log(8)))
    assert perplexity(torch.tensor([3.0, 3.0, 0.0, 0.0])).item() == pytest.approx(2.0)
    assert perplexity(torch.zeros(4)).item() == pytest.approx(1.0)


def test_rank_me_golden_values():
    assert rank_me(normal(1000, 256)).item() == pytest.approx(247.0, abs=0.3)
    low = normal(1000, 3, seed=1) @ normal(3, 256, seed=2)
    assert rank_me(low).item() == pytest.approx(2.99, abs=0.03)
    constant = torch.ones(1000, 256) + 1e-3 * normal(1000, 256, seed=3)
    assert rank_me(constant).item() == pytest.approx(1.18, abs=0.02)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (1, 5), (7, 7)])
def test_rank_me_is_that_of_the_singular_values(shape):
    features = normal(*shape) * torch.linspace(0.1, 3, shape[1])
    assert rank_me(features).item() == pytest.approx(slow.rank_me(features), rel=1e-5)


def test_rank_me_of_zeros_is_finite():
    assert rank_me(torch.zeros(6, 3)).isfinite()


def test_spread_is_one_for_isotropic_and_zero_for_equal_features():
    assert feature_spread(normal(4000, 64)).item() == pytest.approx(1.0, abs=0.02)
    assert feature_spread(torch.ones(10, 64)).item() == pytest.approx(0.0, abs=1e-6)


def test_mean_cosine_is_the_mean_over_pairs():
    features = normal(9, 5) + 1
    unit = [f / f.norm() for f in features]
    pairs = [float(unit[i] @ unit[j]) for i in range(9) for j in range(9) if i != j]
    assert mean_cosine(features).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert mean_cosine(features[:1]).item() == 1.0

"""The contrast head: bags in any order, log-odds whose sigmoid is the softmax, and what is said of them."""

import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.contrast import PHASES, ContrastHead, ContrastNetwork, log_time, targets_of
from fmct.models.encoder import VisionTransformer


def head(*, attention: bool = True, phase: bool = True, seconds: bool = True) -> ContrastHead:
    torch.manual_seed(0)
    built = ContrastHead(12, hidden=8, attention=attention, phase=phase, seconds=seconds)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return built.requires_grad_(False)


def one(rows: int) -> torch.Tensor:
    return torch.zeros(rows, dtype=torch.int64)


@pytest.mark.parametrize("attention", [True, False])
def test_a_bag_knows_neither_order_nor_repetition(attention: bool) -> None:
    """Reference A.12 item 9: invariant to order and to duplicating the bag; weights sum to 1; one tile is itself."""
    pool, rows = head(attention=attention), torch.randn(5, 12)
    logits, weights = pool(rows, one(5), 1)
    turned, _ = pool(rows[[3, 0, 4, 2, 1]], one(5), 1)
    twice, halved = pool(torch.cat([rows, rows]), one(10), 1)
    assert torch.allclose(turned, logits, atol=1e-5)
    assert torch.allclose(twice, logits, atol=1e-5)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(halved[:5], weights / 2, atol=1e-5)
    alone, whole = pool(rows[:1], one(1), 1)
    assert float(whole) == pytest.approx(1)
    assert torch.allclose(alone, pool.logits(pool.linear(rows[:1])), atol=1e-5)


def test_attention_is_not_the_mean_and_mean_is() -> None:
    rows = torch.randn(4, 12)
    _, weights = head(attention=False)(rows, one(4), 1)
    assert torch.equal(weights, torch.full((4,), 0.25))
    _, learned = head()(rows, one(4), 1)
    assert float(learned.std()) > 0.01
    assert not [name for name, _ in head(attention=False).named_parameters() if "score" in name]


def test_a_sigmoid_of_a_phase_s_logit_is_its_softmax() -> None:
    pool = head()
    values, _ = pool.values(torch.randn(3, 12), torch.arange(3), 3)
    shares = pool.logits(values)[:, 1:].sigmoid()
    assert torch.allclose(shares, pool.phases(values).softmax(1), atol=1e-6)
    assert torch.allclose(shares.sum(1), torch.ones(3, dtype=shares.dtype))
    told = pool.told(values[0])
    best = int(shares[0].argmax())
    assert told["phase"] == PHASES[best]
    assert told["phase_probability"] == pytest.approx(float(shares[0, best]), rel=1e-6)


def test_seconds_come_back_from_their_logarithm() -> None:
    pool = head(phase=False)
    for seconds in (0.0, 12.0, 70.0, 420.0):
        values = torch.tensor([0.3, float(log_time(torch.tensor(seconds)))])
        assert pool.told(values) == pytest.approx({"seconds": seconds}, rel=1e-4, abs=1e-3)
    assert pool.told(torch.tensor([0.0, -3.0]))["seconds"] == 0
    assert pool.told(torch.tensor([0.0, 50.0]))["seconds"] == 900


def test_outputs_are_as_many_as_asked_for() -> None:
    assert targets_of(True) == ("contrast", *(f"phase_{name}" for name in PHASES))
    assert targets_of(False) == ("contrast",)
    assert head(phase=False, seconds=False).linear.out_features == 1
    assert head(phase=False, seconds=False).told(torch.zeros(1)) == {}


def test_the_network_pools_the_tiles_of_each_series() -> None:
    encoder = VisionTransformer(in_channels=1, patch_size=4, embed_dim=12, depth=1, num_heads=1)
    network = ContrastNetwork(encoder, hidden=4).eval()
    tiles = torch.randn(4, 1, 8, 8, 8)
    output = network(tiles, bags=torch.tensor([0, 0, 1, 1]), num_bags=2)
    assert output.logits.shape == (2, 5)
    assert output.features.shape == (4, 24)
    swapped = network(tiles[[2, 3, 0, 1]], bags=torch.tensor([1, 1, 0, 0]), num_bags=2)
    assert torch.allclose(swapped.logits, output.logits, atol=1e-5)
    assert network(tiles).logits.shape == (4, 5)
    with pytest.raises(ConfigError, match="pooling"):
        ContrastNetwork(encoder, pooling="max")

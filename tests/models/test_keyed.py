import pytest
import torch

from fmct.models.keyed import drop_path_factors, keyed_uniform


def test_numbers_are_uniform_and_uncorrelated():
    uniform = keyed_uniform(torch.arange(20_000), seed=3, streams=range(6))
    assert uniform.shape == (6, 20_000)
    assert 0 <= uniform.min() < 1e-3
    assert 1 - 1e-3 < uniform.max() < 1
    counts = torch.stack([torch.histc(row, 20, 0, 1) for row in uniform])
    chi_squared = ((counts - 1000) ** 2 / 1000).sum(1)
    assert chi_squared.max() < 45  # 19 degrees of freedom: p < 0.001 above 43.8
    correlation = torch.corrcoef(torch.cat([uniform, uniform.roll(1, dims=1)]))
    off = correlation - torch.eye(12)
    assert off.abs().max() < 0.03


def test_a_number_depends_on_its_key_and_stream_alone():
    keys = torch.tensor([5, -1, 2**40 + 5, 2**62])
    together = keyed_uniform(keys, seed=9, streams=[0, 7])
    alone = keyed_uniform(keys[2:3], seed=9, streams=[7])
    assert together[1, 2] == alone[0, 0]
    assert together.unique().numel() == 8
    assert not torch.equal(together, keyed_uniform(keys, seed=9 + 2**32, streams=[0, 7]))


def test_numbers_never_change():
    """Golden values: a change here would change every resumed run."""
    keys = torch.tensor([0, 1, 123456789012])
    words = (keyed_uniform(keys, seed=0, streams=[0, 1]) * 2**24).long().tolist()
    assert words == [[9059973, 16410475, 3497341], [9744122, 12088347, 12827254]]


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("batch", [1, 2])
def test_drop_path_keeps_the_expectation_for_tiny_batches(rate: float, batch: int):
    draws = [drop_path_factors(torch.arange(i, i + batch), rate=rate, depth=4, seed=1) for i in range(0, 6000, batch)]
    factors = torch.stack(draws)
    assert factors.shape == (6000 // batch, 4, 2, batch)
    values = factors.unique().tolist()
    assert values == pytest.approx([0.0, 1 / (1 - rate)])
    error = (factors.mean(0) - 1).abs().max().item()
    assert error < 5 * (rate / (1 - rate) / (6000 / batch)) ** 0.5

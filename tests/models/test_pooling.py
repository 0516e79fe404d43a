import pytest
import torch
from torch import nn

from fmct import distributed
from fmct.errors import ConfigError
from fmct.models.pooling import AttentivePooling, BatchStandardisation, LinearHead, pooling_heads
from tests.models.networks import noise
from tests.ranks import run_ranks


@pytest.mark.parametrize("masked", [False, True])
def test_attentive_pooling_agrees_with_a_loop_over_heads(masked: bool) -> None:
    pooling = AttentivePooling(12, 3)
    nn.init.normal_(pooling.query)
    nn.init.normal_(pooling.key_value.weight)
    tokens = noise(2, 5, 12)
    valid = torch.tensor([[True, True, False, True, False], [True] * 5]) if masked else None
    pooled, weights = pooling(tokens, valid)
    for b in range(2):
        for head in range(3):
            rows = slice(4 * head, 4 * head + 4)
            keys = tokens[b] @ pooling.key_value.weight[:12][rows].T
            values = tokens[b] @ pooling.key_value.weight[12:][rows].T
            scores = keys @ pooling.query[head] / 4**0.5
            if valid is not None:
                scores[~valid[b]] = -torch.inf
            expected = scores.softmax(0)
            torch.testing.assert_close(weights[b, head], expected)
            torch.testing.assert_close(pooled[b, rows], expected @ values)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))


def test_what_is_not_valid_plays_no_part() -> None:
    pooling = AttentivePooling(8, 2)
    tokens, valid = noise(1, 4, 8), torch.tensor([[True, True, False, True]])
    other = tokens.clone()
    other[0, 2] = 100.0
    assert torch.equal(pooling(tokens, valid)[0], pooling(other, valid)[0])
    with pytest.raises(ConfigError, match="no valid token"):
        pooling(tokens, torch.zeros(1, 4, dtype=torch.bool))


def test_the_published_batch_norm_head() -> None:
    """FM-HCT's linear head: BatchNorm1d without affine parameters, then a linear layer; running averages at the end."""
    head, reference = LinearHead(6, 2, norm="batch"), nn.BatchNorm1d(6, affine=False)
    x = 3 * noise(8, 6) + 5
    torch.testing.assert_close(head(x), head.linear(reference(x)))
    head.eval()
    reference.eval()
    torch.testing.assert_close(head(x), head.linear(reference(x)))
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]


def test_one_row_cannot_be_standardised() -> None:
    with pytest.raises(ConfigError, match="two or more"):
        LinearHead(6, 2, norm="batch")(noise(1, 6))
    assert LinearHead(6, 2, norm="batch").eval()(noise(1, 6)).shape == (1, 2)
    with pytest.raises(ConfigError, match="head norm"):
        LinearHead(6, 2, norm="group")


def standardise_half() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = noise(6, 4).double()
    size = 6 // distributed.world_size()
    mine = rows[distributed.rank() * size :][:size].requires_grad_()
    norm = BatchStandardisation(4).double()
    out = norm(mine)
    (out * noise(6, 4, seed=1)[distributed.rank() * size :][:size]).sum().backward()
    assert mine.grad is not None
    assert norm.running_mean is not None
    return out.detach(), mine.grad, norm.running_mean


def test_ranks_standardise_by_the_whole_batch() -> None:
    whole = standardise_half()
    halves = run_ranks(standardise_half)
    for number in range(2):
        torch.testing.assert_close(torch.cat([half[number] for half in halves]), whole[number])
    assert all(torch.equal(half[2], halves[0][2]) for half in halves)
    torch.testing.assert_close(halves[0][2], whole[2])


def test_heads_divide_the_features() -> None:
    assert [pooling_heads(d) for d in (768, 384, 24, 200, 100)] == [12, 6, 1, 2, 1]
    with pytest.raises(ConfigError, match="do not divide"):
        AttentivePooling(10, 3)


def test_logits_are_not_rounded_under_autocast() -> None:
    """Sixty rows that differ by a hundredth of a logit: bfloat16 would have four values for them."""
    head = LinearHead(8, 1)
    with torch.no_grad():
        head.linear.weight.fill_(0.125)
        head.linear.bias.fill_(2.0)
    rows = torch.linspace(0, 0.01, 60)[:, None].expand(-1, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(rows)
    assert logits.dtype == torch.float32
    assert len(logits.unique()) == 60
    assert torch.allclose(logits[:, 0], 2 + rows[:, 0], atol=1e-6)

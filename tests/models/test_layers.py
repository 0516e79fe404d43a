import pytest
import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block as TimmBlock

from fmct.errors import ConfigError
from fmct.models import layers
from fmct.models.layers import Attention, Block, Packing, attend, mlp_width

PACKING = Packing(((2, 3), (4, 1)))


def test_packing_spreads_repeats_and_splits():
    a, b = torch.randn(2, 3, 5), torch.randn(4, 1, 5)
    rows = PACKING.spread([a, b])
    assert rows.shape == (10, 5)
    back = PACKING.split(rows)
    assert torch.equal(back[0], a)
    assert torch.equal(back[1], b)
    assert back[0].data_ptr() == rows.data_ptr()
    shared = PACKING.spread([torch.arange(3.0).reshape(1, 3, 1), torch.full((1, 1, 1), 9.0)])
    assert shared[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 9, 9, 9, 9]
    per_crop = PACKING.repeat(torch.arange(12).reshape(2, 6))
    assert per_crop[..., 0].tolist() == [[0, 0, 0, 1, 1, 1, 2, 3, 4, 5], [6, 6, 6, 7, 7, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_a_block_equals_timms(layer_scale: float | None):
    torch.manual_seed(0)
    theirs = TimmBlock(48, 4, qkv_bias=True, init_values=layer_scale).double()
    ours = Block(48, 4, layer_scale=layer_scale).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 7, 48, dtype=torch.float64)
    ours_out = ours(x.flatten(0, 1), Packing(((3, 7),))).reshape(3, 7, 48)
    torch.testing.assert_close(ours_out, theirs(x), rtol=0, atol=1e-12)


def test_dropped_branches_match_timms_rule():
    """timm's DropPath with the same mask: x + mask / (1 − p) · branch."""
    torch.manual_seed(0)
    block = Block(24, 2, layer_scale=0.5).double()
    x = torch.randn(4, 3, 24, dtype=torch.float64)
    packing = Packing(((4, 3),))
    dropper = DropPath(0.5)
    torch.manual_seed(5)
    mask1 = dropper(torch.ones(4, 1, 1, dtype=torch.float64))
    mask2 = dropper(torch.ones(4, 1, 1, dtype=torch.float64))
    keep = torch.stack([packing.repeat(mask1[:, 0, 0]), packing.repeat(mask2[:, 0, 0])])
    got = block(x.flatten(0, 1), packing, None, keep).reshape(4, 3, 24)
    branch = block.ls1(block.attn(block.norm1(x).flatten(0, 1), packing, None)).reshape(4, 3, 24)
    expected = x + mask1 * branch
    expected = expected + mask2 * block.ls2(block.mlp(block.norm2(expected)))
    assert 0 < mask1.count_nonzero() < 4
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dim", "width"), [(192, 512), (384, 1024), (768, 2048), (1536, 4096), (100, 272)])
def test_swiglu_is_two_thirds_as_wide_rounded_up_to_eight(dim: int, width: int):
    assert mlp_width(dim, 4.0, swiglu=True) == width
    assert mlp_width(dim, 4.0, swiglu=False) == 4 * dim


def test_swiglu_block_computes_its_definition():
    torch.manual_seed(0)
    block = Block(24, 2, swiglu=True).double()
    x = torch.randn(5, 24, dtype=torch.float64)
    mlp = block.mlp
    gate = mlp.fc1_g(x)
    expected = mlp.fc2(gate * torch.sigmoid(gate) * mlp.fc1_x(x))
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-12)
    assert mlp.fc2.in_features == 64


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="heads"):
        Attention(48, 5)


@pytest.mark.parametrize("tokens", [5, 28, 221])
def test_attention_by_products_is_attention(tokens: int, monkeypatch: pytest.MonkeyPatch):
    """In bfloat16 on a CPU: output and gradients within bfloat16's rounding of float64's."""

    def fused(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("products were meant")

    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(3, 2, 3, tokens, 16, generator=generator).bfloat16()
    weight = torch.randn(2, 3, tokens, 16, generator=generator)
    exact = qkv.double().requires_grad_()
    expected = torch.nn.functional.scaled_dot_product_attention(*exact)
    (expected * weight).sum().backward()
    half = qkv.clone().requires_grad_()
    monkeypatch.setattr(layers.functional, "scaled_dot_product_attention", fused)
    found = attend(*half)
    (found * weight).sum().backward()
    assert half.grad is not None
    assert exact.grad is not None
    for got, truth in ((found, expected), (half.grad, exact.grad)):
        error = (got.double() - truth).pow(2).mean() / truth.pow(2).mean()
        assert error.sqrt() < 0.01  # bfloat16 keeps 8 bits: .004 a rounding


def test_long_sequences_and_other_types_keep_the_fused_kernel(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(q.shape[-2])
        return v

    monkeypatch.setattr(layers.functional, "scaled_dot_product_attention", fused)
    short, long = (torch.randn(3, 1, 1, tokens, 8).bfloat16().requires_grad_() for tokens in (9, 1025))
    attend(*long)
    attend(*short.float())
    assert calls == [1025, 9]
    attend(*short)
    with torch.no_grad():
        attend(*short)
    assert len(calls) == 2

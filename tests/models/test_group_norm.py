"""Group norm with its activation: torch's in every memory layout and type, with and without gradients."""

from collections.abc import Callable
from math import gcd

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fmct.models.group_norm import GroupNormAct, group_norm_act

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
SHAPES = [(2, 8, 5, 6, 7), (1, 64, 1, 1, 1), (1, 12, 3, 3, 3), (1, 8, 40, 64, 64)]  # the last: two blocks of rows


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def norm_of(channels: int) -> GroupNormAct:
    """Return a decoder's norm, whose weight and bias are none of the first ones."""
    norm = GroupNormAct(gcd(8, channels // 2), channels)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * noise(channels))
        norm.bias.copy_(noise(channels).flip(0))
    return norm


def expected(x: Tensor, norm: GroupNormAct) -> Tensor:
    """Return the definition in float64."""
    grouped = x.double().reshape(len(x), norm.num_groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()).view(x.shape)
    shape = (-1, 1, 1, 1)
    return functional.leaky_relu(normed * norm.weight.double().view(shape) + norm.bias.double().view(shape), 0.01)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels last"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad], ids=["predicting", "training"])
def test_the_norm_is_the_definition_and_leaves_memory_as_it_lies(
    shape: tuple[int, ...], kind: torch.dtype, layout: torch.memory_format, context: Callable[[], torch.no_grad]
) -> None:
    x = (5 + 2 * noise(*shape)).to(kind).to(memory_format=layout)
    before = x.clone()
    norm = norm_of(shape[1])
    with context(), torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        found = norm(x)
    wanted = expected(x, norm)
    assert found.dtype == kind
    assert found.is_contiguous(memory_format=layout)
    assert torch.equal(x, before)
    size = wanted.abs().max().item()
    assert (found.double() - wanted).abs().max().item() < size * (2**-7 if kind == torch.bfloat16 else 1e-4)


def test_rounded_moments_would_be_seen() -> None:
    """A map far from zero: in bfloat16 its mean would be off by a fifth of its deviation."""
    x = (100 + noise(1, 8, 16, 16, 16)).bfloat16().to(memory_format=torch.channels_last_3d)
    norm = norm_of(8)
    with torch.no_grad():
        found, wanted = norm(x).double(), expected(x, norm)
    assert (found - wanted).mean().abs() < 1e-3
    assert (found - wanted).abs().max() < 0.03


def test_a_map_that_lies_in_neither_way_is_normalised_too() -> None:
    x = noise(2, 8, 6, 6, 12).bfloat16()[..., ::2]
    norm = norm_of(8)
    with torch.no_grad():
        assert (norm(x).double() - expected(x, norm)).abs().max() < 0.03


def test_gradients_are_those_of_the_definition() -> None:
    x = noise(2, 8, 4, 4, 4).bfloat16().to(memory_format=torch.channels_last_3d).requires_grad_()
    norm, ahead = norm_of(8), noise(2, 8, 4, 4, 4)
    norm(x).backward(ahead.bfloat16())
    reference = x.detach().double().requires_grad_()
    expected(reference, norm).backward(ahead.double())
    assert x.grad is not None
    assert reference.grad is not None
    assert (x.grad.double() - reference.grad).norm() < 0.02 * reference.grad.norm()


def test_groups_divide_the_channels_and_hold_two_at_least() -> None:
    for channels in range(4, 132, 4):
        groups = int(group_norm_act(channels)[1]["num_groups"])  # type: ignore[call-overload]
        assert channels % groups == 0
        assert channels // groups >= 2

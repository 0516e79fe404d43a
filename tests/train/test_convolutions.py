"""Gradients of small volumes in bf16 on a CPU: what the engine computes is what fp32 gives, to bf16's rounding."""

import pytest
import torch
from torch import nn

from fmct.train.convolutions import SoundConvolutions, autocast
from fmct.train.optim import OptimConfig
from fmct.train.task import TaskOutput
from fmct.train.torch_engine import TorchEngine

CPU = torch.device("cpu")
LAYERS = {
    "conv": lambda: nn.Conv3d(16, 32, 3, padding=1),
    "transposed": lambda: nn.ConvTranspose3d(16, 32, 3, padding=1),
    "wide": lambda: nn.Conv3d(16, 32, 5, padding=2),
}


def gradient(layer: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    layer.zero_grad()
    with autocast(CPU, dtype):
        y = layer(x)
    y.float().square().sum().backward()
    found = next(layer.parameters()).grad
    assert found is not None
    return found.clone()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8])
def test_gradients_are_those_of_fp32_at_any_depth(kind: str, depth: int) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    x = torch.randn(2, 16, depth, 6, 6)
    wanted, found = (gradient(layer, x, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_only_what_is_wrong_is_computed_in_fp32() -> None:
    layer = LAYERS["conv"]()
    with autocast(CPU, torch.bfloat16):
        kinds = {depth: layer(torch.rand(1, 16, depth, 4, 4)).dtype for depth in (1, 2, 3)}
        flat = nn.Conv2d(16, 8, 3)(torch.rand(1, 16, 4, 4)).dtype
    assert kinds == {1: torch.bfloat16, 2: torch.float32, 3: torch.bfloat16}
    assert flat == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert layer(torch.rand(1, 16, 3, 4, 4)).dtype == torch.float32


class Ends(nn.Module):
    """A network that ends in two voxels, as the heads that judge a patch do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Conv3d(8, 16, 3, padding=1)

    def forward(self, batch: torch.Tensor, values: object) -> TaskOutput:
        loss = self.layer(batch).float().square().mean()
        return TaskOutput(loss)


def test_the_engine_trains_a_network_that_ends_in_few_voxels() -> None:
    x = torch.randn(4, 8, 2, 2, 2)
    norms = {}
    for dtype in (torch.float32, torch.bfloat16):
        engine = TorchEngine(Ends(), optim=OptimConfig(), device=CPU, dtype=dtype, accumulate=1)
        engine.backward(engine.forward(x, {}).loss)
        norms[dtype] = float(engine.task.layer.weight.grad.norm())
    assert norms[torch.bfloat16] == pytest.approx(norms[torch.float32], rel=0.02)


def test_the_guard_ends_with_its_context() -> None:
    with SoundConvolutions(), torch.autocast("cpu", dtype=torch.bfloat16):
        pass
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert LAYERS["conv"]()(torch.rand(1, 16, 2, 4, 4)).dtype == torch.bfloat16

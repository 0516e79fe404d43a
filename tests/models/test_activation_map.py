import pytest
import torch
from torch import nn

from fmct.errors import ConfigError
from fmct.models.activation_map import class_activation_map
from fmct.models.dual_phase import DualPhase
from tests.models.networks import noise, tiny_encoder


def test_behind_a_global_mean_it_is_cam_and_grad_cam_up_to_the_cell_count_s2() -> None:
    """S2: on mean pooling and a linear layer, CAM, Grad-CAM and this map agree up to scale."""
    features, linear = noise(2, 5, 2, 3, 4).requires_grad_(), nn.Linear(5, 3)
    logits = linear(features.mean((2, 3, 4)))
    cam = torch.einsum("c,bcdhw->bdhw", linear.weight[1], features).detach()
    gradient = torch.autograd.grad(logits[:, 1].sum(), features, retain_graph=True)[0]
    grad_cam = (gradient.mean((2, 3, 4), keepdim=True) * features).sum(1).detach()
    found = class_activation_map(logits, features, output=1)
    torch.testing.assert_close(found, cam / 24)
    torch.testing.assert_close(found, grad_cam)


def test_it_shows_where_a_phases_logit_comes_from() -> None:
    network = DualPhase(tiny_encoder(), width=16, stem_channels=4).eval()
    output = network(noise(2, 1, 4, 8, 8)).nct
    found = class_activation_map(output.classification, output.taps[-1])
    assert found.shape == (2, 2, 2, 2)
    assert found.abs().max() > 0
    with torch.no_grad():
        output = network(noise(2, 1, 4, 8, 8)).nct
    with pytest.raises(ConfigError, match="no_grad"):
        class_activation_map(output.classification, output.taps[-1])

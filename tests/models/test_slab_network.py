"""Slab networks: the published grid, a map that is Grad-CAM's, and attention inside the graph."""

import pytest
import timm
import torch

from fmct.errors import ConfigError
from fmct.models.activation_map import class_activation_map
from fmct.models.encoder import EncoderConfig, build_encoder
from fmct.models.slab_network import SlabNetwork, SlabNetworkConfig, TokenSlabNetwork, build_slab_network
from fmct.models.vision_transformer import VisionTransformer

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


def test_the_default_is_timms_resnet18_and_its_map_is_24_by_24() -> None:
    """S5: 384 voxels become 24 cells."""
    network = SlabNetwork(5).eval()
    published = timm.create_model("resnet18", in_chans=5, num_classes=0)
    shapes = {name: value.shape for name, value in published.state_dict().items()}
    assert {name: value.shape for name, value in network.encoder.state_dict().items()} == shapes
    with torch.no_grad():
        output = network(torch.rand(1, 1, 5, 384, 384))
    assert output.features.shape == (1, 512, 24, 24)
    assert output.attention.shape == (1, 1, 24, 24)
    assert output.logits.shape == (1, 1)


@pytest.mark.parametrize("classes", [1, 2])
def test_the_map_is_grad_cam_up_to_the_number_of_cells(classes: int) -> None:
    """S2: behind a global mean and a linear layer CAM and Grad-CAM agree up to a constant factor."""
    torch.manual_seed(0)
    network = SlabNetwork(3, classes=classes, **SMALL).eval()
    if classes == 2:
        network.head.weight.data[0] = 0.0  # Grad-CAM of the difference is then that of its second output
    output = network(torch.rand(2, 1, 3, 64, 48))
    raw = network.activation_map(output.features)
    h, w = raw.shape[1:]
    gradient = torch.autograd.grad(output.logits.sum(), output.features, retain_graph=True)[0]
    grad_cam = (gradient.mean((2, 3), keepdim=True) * output.features).sum(1)
    torch.testing.assert_close(raw, grad_cam * h * w, rtol=1e-4, atol=1e-6)
    hires = class_activation_map(output.logits, output.features)
    torch.testing.assert_close(raw.detach(), hires * h * w, rtol=1e-4, atol=1e-6)
    bias = network.head.bias[-1] - (network.head.bias[0] if classes == 2 else 0)
    torch.testing.assert_close(raw.mean((1, 2)) + bias, output.logits[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["sigmoid", "relu_max"])
def test_attention_is_a_share_and_leads_gradients_into_features_and_weights(activation: str) -> None:
    torch.manual_seed(1)
    network = SlabNetwork(3, activation=activation, **SMALL)
    network.head.weight.data.abs_()  # some cells above 0
    output = network(torch.rand(2, 1, 3, 64, 64))
    assert bool((output.attention >= 0).all())
    assert bool((output.attention <= 1).all())
    output.attention.sum().backward()
    for parameter in (network.head.weight, next(network.encoder.parameters())):
        assert float(parameter.grad.abs().sum()) > 0


def test_a_map_below_one_logit_is_not_stretched() -> None:
    network = SlabNetwork(3, activation="relu_max", **SMALL)
    network.head.weight.data.fill_(1.0)
    faint, strong = torch.full((1, 16, 2, 2), 0.01), torch.full((1, 16, 2, 2), 1.0)
    strong[..., 0, 0] = 2.0
    torch.testing.assert_close(network.attention(faint), torch.full((1, 2, 2), 0.16))
    torch.testing.assert_close(network.attention(strong), torch.tensor([[[1.0, 0.5], [0.5, 0.5]]]))


def test_two_outputs_are_a_softmax() -> None:
    network = SlabNetwork(3, classes=2, **SMALL).eval()
    x = torch.rand(1, 1, 3, 32, 32)
    output = network(x)
    both = network.head(output.features.mean((2, 3))).softmax(1)[:, 1:]
    torch.testing.assert_close(output.logits.sigmoid(), both)


def test_tokens_give_features_attention_and_logits() -> None:
    torch.manual_seed(2)
    encoder = build_encoder(EncoderConfig(size="tiny", embed_dim=24, depth=1, num_heads=2, patch_size=[4, 8, 8]), 2)
    network = build_slab_network(SlabNetworkConfig(), in_channels=2, slices=8, encoder=encoder)
    assert isinstance(network, TokenSlabNetwork)
    assert isinstance(network.encoder, VisionTransformer)
    x, spacing = torch.rand(2, 2, 8, 16, 32), torch.tensor([[2.5, 1.0, 1.0]] * 2)
    output = network(x, spacing)
    assert output.logits.shape == (2, 1)
    assert output.attention.shape == (2, 2, 2, 4)
    assert output.features.shape == (2, 24, 2, 4)
    torch.testing.assert_close(output.attention.amax((1, 2, 3)), torch.ones(2))
    tokens = encoder(x, spacing).patches.view(2, 2, 2, 4, 24)
    torch.testing.assert_close(output.features, tokens.mean(1).permute(0, 3, 1, 2))
    output.attention[:, 0, 0, 0].sum().backward()
    assert float(network.pooling.query.grad.abs().sum()) > 0


def test_impossible_networks_are_refused() -> None:
    for wrong in ({"norm": "instance"}, {"activation": "softmax"}, {"classes": 3}, {"layers": [2, 2]}):
        with pytest.raises(ConfigError, match="slab network"):
            SlabNetwork(5, **wrong)
    with pytest.raises(ConfigError, match="multiples of 8"):  # four groups in half of the first width
        SlabNetwork(5, norm="group", channels=[4, 4, 4, 4])
    with pytest.raises(ConfigError, match="built for 5 channels"):
        SlabNetwork(5, **SMALL)(torch.zeros(1, 1, 3, 32, 32))

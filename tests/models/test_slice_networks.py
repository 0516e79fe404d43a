"""The five published slice networks: heads, wiring, frozen layers, keyed dropout, weights through timm's loading."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fmct.errors import ConfigError, WeightsError
from fmct.models.slice_networks import (
    DrawKeys,
    KeyedDropout,
    KeyedDropPath,
    SliceNetwork,
    SliceNetworkConfig,
    build_slice_network,
    load_imagenet,
)

KEYS = torch.tensor([5, 6])


def widths(head: nn.Sequential) -> list[tuple[int, int]]:
    return [(part.in_features, part.out_features) for part in head if isinstance(part, nn.Linear)]


@pytest.mark.parametrize(
    ("name", "side", "expected", "dropouts", "parameters"),
    [
        ("simple_cnn", 32, [(512, 256), (256, 256), (256, 1)], 2, 231_168 + 672),
        ("efficientnet_b4", 32, [(1792, 1000), (1000, 1)], 2, 17_548_616),  # as Keras counts what it trains
        ("resnet101v2", 32, [(2048, 1000), (1000, 1)], 0, 42_492_480),
        ("inception_v3", 75, [(2048, 1000), (1000, 1)], 0, 21_785_568),
    ],
)
def test_each_network_has_the_published_head(
    name: str, side: int, expected: list[tuple[int, int]], dropouts: int, parameters: int
) -> None:
    network = build_slice_network(SliceNetworkConfig(name), side=side).eval()
    assert widths(network.head) == expected
    assert sum(isinstance(part, KeyedDropout) for part in network.head) == dropouts
    slices = torch.rand(2, side, side)
    with torch.no_grad():
        logits = network(slices)
        assert logits.shape == (2,)
        features = network.body(slices[:, None].expand(-1, 3, -1, -1))
        torch.testing.assert_close(logits, network.head(features)[:, 0])  # every body is fed as it is, three times
    assert sum(p.numel() for p in network.body.parameters()) == parameters


def test_the_simple_network_is_four_stages() -> None:
    network = build_slice_network(SliceNetworkConfig("simple_cnn"), side=192)
    convolutions = [part for part in network.body.modules() if isinstance(part, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 64, 128, 128]
    assert widths(network.head)[0] == (12 * 12 * 128, 256)
    assert {part.momentum for part in network.body.modules() if isinstance(part, nn.BatchNorm2d)} == {0.05}


def test_legacy_and_modern_input_scale_differ() -> None:
    """Acceptance 18: 1/255 and 1 give other logits, and 1/255 is what a slice 255 times darker gives."""
    slices = torch.rand(2, 32, 32)
    logits = {}
    for scale in (1.0, 1 / 255):
        config = SliceNetworkConfig("simple_cnn", filters=[4, 8], input_scale=scale)
        network = build_slice_network(config, side=32, seed=3).eval()
        with torch.no_grad():
            logits[scale] = network(slices)
    modern = build_slice_network(SliceNetworkConfig("simple_cnn", filters=[4, 8]), side=32, seed=3).eval()
    assert not torch.allclose(logits[1.0], logits[1 / 255], atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(logits[1 / 255], modern(slices / 255))


def test_weights_come_from_the_seed_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        network = build_slice_network(SliceNetworkConfig("simple_cnn", filters=[4]), side=8, seed=seed)
        return torch.cat([p.flatten() for p in network.parameters()])

    torch.manual_seed(1)
    first, state = weights(7), torch.random.get_rng_state()
    torch.manual_seed(2)
    torch.testing.assert_close(first, weights(7), rtol=0, atol=0)
    assert not torch.equal(first, weights(8))
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_dropout_is_of_the_draw_and_keeps_the_mean() -> None:
    keys = DrawKeys(seed=1)
    drop, path = KeyedDropout(0.3, keys, layer=0), KeyedDropPath(0.3, keys, layer=2)
    keys.now = torch.arange(400)
    x = torch.ones(400, 50)
    found = drop(x)
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert float(found.mean()) == pytest.approx(1, abs=0.02)
    whole = path(x)
    assert (whole == whole[:, :1]).all()
    assert float(whole.mean()) == pytest.approx(1, abs=0.1)
    keys.now = torch.tensor([17, 3])
    torch.testing.assert_close(drop(x[:2]), found[[17, 3]])
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(path.eval()(x), x)


def test_training_needs_the_draws() -> None:
    network = build_slice_network(SliceNetworkConfig("simple_cnn", filters=[4]), side=8)
    with pytest.raises(ValueError, match="draws"):
        network(torch.rand(2, 8, 8))
    first, second = (network(torch.ones(2, 8, 8), KEYS) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_stochastic_depth_of_efficientnet_is_keyed() -> None:
    network = build_slice_network(SliceNetworkConfig("efficientnet_b4"), side=32)
    paths = [part for part in network.body.modules() if isinstance(part, KeyedDropPath)]
    assert max(part.rate for part in paths) == pytest.approx(0.2, abs=0.01)
    assert len({part.layer for part in paths}) == len(paths)
    assert not [part for part in network.body.modules() if type(part).__name__ == "DropPath"]


def test_frozen_layers_stay_as_they_are() -> None:
    network = build_slice_network(SliceNetworkConfig("simple_cnn", filters=[4, 8]), side=8)
    network.freeze(3)  # convolution, its batch norm, the next convolution
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.rand(2, 8, 8), KEYS).sum().backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith(("body.0.", "body.1.", "body.4."))]
    assert any(name.startswith("body.5.") for name in changed)  # its running mean too
    assert any(name.startswith("head.") for name in changed)
    with pytest.raises(ConfigError, match="0 to"):
        network.freeze(99)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file as timm's hub holds it, with random numbers."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    torch.manual_seed(4)
    save_file(timm.create_model("resnetv2_101").state_dict(), path)
    return path


def test_the_frozen_network_has_timms_weights_and_runs_in_inference_mode(imagenet: Path) -> None:
    config = SliceNetworkConfig("imagenet", weights=str(imagenet), hidden=8)
    network = build_slice_network(config, side=32, pretrained=True)
    torch.manual_seed(4)
    whole = timm.create_model("resnetv2_101").eval()
    slices = torch.rand(2, 32, 32)
    network.train()
    assert not network.body.training
    assert network.head.training
    with torch.no_grad():
        features = whole.forward_head(whole.forward_features((slices[:, None].expand(-1, 3, -1, -1) - 0.5) / 0.5), True)
        torch.testing.assert_close(network(slices, KEYS), network.head(features)[:, 0])
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("head.") for name in trained)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    network = SliceNetwork(SliceNetworkConfig("simple_cnn", filters=[4]), side=8)
    with pytest.raises(WeightsError, match="safetensors"):
        load_imagenet(network, "absent.pth")
    other = tmp_path / "model.safetensors"
    save_file({"stem.conv.weight": torch.zeros(1)}, other)
    with pytest.raises(WeightsError, match="none that fit"):
        load_imagenet(network, str(other))


@pytest.mark.parametrize(
    "wrong", [{"name": "vgg"}, {"dropout": 1.0}, {"input_scale": 0.0}, {"weights": "x.safetensors"}, {"filters": []}]
)
def test_a_network_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SliceNetworkConfig(**{"name": "simple_cnn", **wrong})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 75"):
        build_slice_network(SliceNetworkConfig("inception_v3"), side=64)

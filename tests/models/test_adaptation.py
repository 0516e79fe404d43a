import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.adaptation import adapt, from_scratch, merged
from fmct.models.classifier import Classifier
from fmct.train.optim import parameter_groups
from tests.models.networks import noise, tiny_encoder


def model(**settings: object) -> Classifier:
    return Classifier(tiny_encoder(**settings), outputs=2)


def trained(network: torch.nn.Module) -> set[str]:
    """Return the names in the optimiser's groups."""
    groups = parameter_groups(network.named_parameters(), layer_decay=0.5, encoder_multiplier=0.1)
    return {name for group in groups for name in group["names"]}


def test_modes_say_what_is_optimised() -> None:
    every = {name for name, _ in model().named_parameters()}
    head = {"head.linear.weight", "head.linear.bias"}
    assert trained(adapt(model(), "full")) == every
    assert trained(adapt(model(), "frozen")) == head
    low_rank = adapt(model(), "lora", rank=2)
    names = trained(low_rank)
    assert names == head | {n for n, _ in low_rank.named_parameters() if "lora_" in n}
    assert len(names) == 2 + 4 * 4
    with pytest.raises(ConfigError, match="frozen, lora, full"):
        adapt(model(), "partial")


def test_a_frozen_encoder_stays_in_evaluation_and_keeps_no_graph() -> None:
    """Without drop-path keys: a frozen encoder draws nothing."""
    network = adapt(model(drop_path=0.5), "frozen").train()
    assert network.training
    assert not network.encoder.training
    output = network(noise(2, 1, 4, 8, 8))
    assert not output.features.requires_grad
    assert output.logits.requires_grad
    assert adapt(network, "full").encoder.training


def test_adapters_learn_at_the_full_rate_and_the_encoder_at_its_own() -> None:
    network = adapt(model(), "lora", rank=2)
    network.requires_grad_(True)
    groups = parameter_groups(network.named_parameters(), layer_decay=0.5, encoder_multiplier=0.1)
    rate = {name: group["lr_multiplier"] for group in groups for name in group["names"]}
    assert rate["encoder.blocks.0.attn.qkv.lora_a.q"] == 1.0
    assert rate["head.linear.weight"] == 1.0
    assert rate["encoder.norm.weight"] == pytest.approx(0.1)
    assert rate["encoder.blocks.3.attn.qkv.weight"] == pytest.approx(0.1 * 0.5)
    assert rate["encoder.blocks.0.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5**4)
    assert rate["encoder.patch_embed.weight"] == pytest.approx(0.1 * 0.5**5)


def test_merging_leaves_the_original_alone() -> None:
    network = adapt(model(), "lora", rank=2).eval()
    for name, parameter in network.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter)
    plain, x = merged(network), noise(2, 1, 4, 8, 8)
    torch.testing.assert_close(plain(x).logits, network(x).logits, rtol=1e-4, atol=1e-5)
    assert list(plain.state_dict()) == list(model().state_dict())
    assert any("lora_" in name for name in network.state_dict())
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_the_control_is_as_untrained_seeded_and_leaves_the_callers_randomness() -> None:
    encoder = tiny_encoder()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    control = from_scratch(encoder, seed=5, layer_scale=0.25)
    assert torch.equal(torch.rand(3), expected)
    again = from_scratch(encoder, seed=5)
    assert torch.equal(control.patch_embed.weight, again.patch_embed.weight)  # type: ignore[union-attr]
    assert not torch.equal(control.patch_embed.weight, encoder.patch_embed.weight)  # type: ignore[union-attr]
    assert not torch.equal(from_scratch(encoder, seed=6).patch_embed.weight, again.patch_embed.weight)  # type: ignore[union-attr]
    assert (control.blocks[0].ls1.gamma == 0.25).all()  # type: ignore[union-attr, index]
    assert (again.blocks[0].ls1.gamma == 0.5).all()  # type: ignore[union-attr, index]
    assert control.norm.weight.eq(1).all()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="init_weights"):
        from_scratch(torch.nn.Linear(2, 2), seed=0)

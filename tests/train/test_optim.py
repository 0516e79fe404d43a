import pytest
import torch
from torch import nn

from fmct.errors import ConfigError
from fmct.models.encoder import vit_tiny
from fmct.models.heads import ProjectionHead, ReconstructionDecoder
from fmct.train.optim import OptimConfig, apply_values, build_optimizer, parameter_groups

DECAY, PATCH = 0.9, 0.2


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = vit_tiny(in_channels=1, patch_size=4, depth=3, position="learned", grid_size=2)
        self.dino_head = ProjectionHead(192, 32, 16, 24)
        self.reconstruction_head = ReconstructionDecoder(192, 4, 1, decoder_dim=48, depth=2, num_heads=2)


def slowly(name: str, depth: int) -> tuple[float, float, bool]:
    """Return (learning-rate multiplier, decay multiplier, last layer) of a student's parameter, spelt out."""
    if name.startswith("encoder.blocks."):
        rate = DECAY ** (depth - int(name.split(".")[2]))
    elif name.startswith("encoder.norm") or name.startswith(("dino_head", "reconstruction_head")):
        rate = 1.0
    else:
        rate = DECAY ** (depth + 1)
    if name.startswith("encoder.patch_embed"):
        rate *= PATCH
    undecayed = name.endswith("bias") or ".norm" in name or name.endswith("gamma")
    return rate, 0.0 if undecayed else 1.0, "prototypes" in name


def test_groups_agree_with_a_slow_map() -> None:
    student = Student()
    groups = parameter_groups(student.named_parameters(), layer_decay=DECAY, patch_embed_multiplier=PATCH)
    found = {
        name: (group["lr_multiplier"], group["decay_multiplier"], group["last_layer"])
        for group in groups
        for name in group["names"]
    }
    names = [name for name, _ in student.named_parameters()]
    assert sorted(found) == sorted(names)
    for name in names:
        assert found[name] == pytest.approx(slowly(name, 3)), name
    keys = [(g["lr_multiplier"], g["decay_multiplier"], g["last_layer"]) for g in groups]
    assert len(set(keys)) == len(keys), "groups of equal multipliers are merged"
    assert sum(len(g["params"]) for g in groups) == len(names)
    assert found["encoder.cls_token"][1] == 1.0, "tokens are decayed"
    scales = [name for name in names if "gamma" in name]
    assert len(scales) == 6
    assert all(found[name][1] == 0.0 for name in scales), "LayerScale is not decayed"


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert [g["names"] for g in parameter_groups(module.named_parameters())] == [["weight"]]


def test_values_reach_each_group_and_a_frozen_last_layer_does_not_move() -> None:
    module = nn.Module()
    module.head = nn.Linear(3, 3)
    module.prototypes = nn.Linear(3, 3, bias=False)
    optimizer = build_optimizer(module.named_parameters(), OptimConfig())
    before = module.prototypes.weight.detach().clone()
    weight = module.head.weight.detach().clone()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_values(optimizer.param_groups, {"learning_rate": 0.1, "weight_decay": 0.5, "last_layer_learning_rate": 0.0})
    optimizer.step()
    assert torch.equal(module.prototypes.weight, before), "neither the gradient nor the decay moved it"
    assert optimizer.state[module.prototypes.weight]["exp_avg"].abs().min() > 0, "its moments go on"
    # AdamW's first step: decay by lr · wd, then lr against the gradient's sign.
    torch.testing.assert_close(module.head.weight.detach(), weight * (1 - 0.1 * 0.5) - 0.1)


@pytest.mark.parametrize("bad", [{"betas": [0.9]}, {"betas": [0.9, 1.0]}, {"layer_decay": 0.0}, {"clip": -1.0}])
def test_impossible_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match="optim"):
        OptimConfig(**bad)


def test_an_encoder_learns_more_slowly_than_its_heads() -> None:
    module = nn.ModuleDict({"encoder": Student().encoder, "decoder": nn.Linear(2, 2), "ctpa_encoder": nn.Linear(2, 2)})
    groups = parameter_groups(module.named_parameters(), encoder_multiplier=0.25)
    rates = {name: group["lr_multiplier"] for group in groups for name in group["names"]}
    assert {rate for name, rate in rates.items() if name.startswith("decoder")} == {1.0}
    assert {rate for name, rate in rates.items() if not name.startswith("decoder")} == {0.25}
    layered = parameter_groups(module.named_parameters(), encoder_multiplier=0.25, layer_decay=0.5)
    by_name = {name: group["lr_multiplier"] for group in layered for name in group["names"]}
    assert by_name["encoder.blocks.2.attn.qkv.weight"] == 0.25 * 0.5
    assert by_name["encoder.cls_token"] == 0.25 * 0.5**4

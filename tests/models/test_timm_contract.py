"""Parity with timm's VisionTransformer: a volume one patch deep is an image with its depth folded into channels."""

from typing import Any

import pytest
import timm.optim
import torch
from timm.models.vision_transformer import VisionTransformer as TimmEncoder
from torch import Tensor, nn

from fmct.errors import ConfigError
from fmct.models.vision_transformer import VisionTransformer


def twins(**settings: Any) -> tuple[VisionTransformer, TimmEncoder]:
    """Return our encoder and timm's with the same weights: patch 2 x 4 x 4 over 3 channels is 4 x 4 over 6."""
    torch.manual_seed(0)
    theirs = TimmEncoder(
        img_size=(8, 12), patch_size=4, in_chans=6, num_classes=5, embed_dim=48, depth=4, num_heads=4, reg_tokens=2,
        no_embed_class=True, fc_norm=False, init_values=0.3, **settings,
    ).double()  # fmt: skip
    ours = VisionTransformer(
        in_channels=3, patch_size=(2, 4, 4), embed_dim=48, depth=4, num_heads=4, num_registers=2, position="learned",
        grid_size=(1, 2, 3), layer_scale=0.3, num_classes=5, mask_token=False, **settings,
    ).double()  # fmt: skip
    names = {
        "register_tokens": "reg_token",
        "positions.table": "pos_embed",
        "patch_embed.weight": "patch_embed.proj.weight",
    }
    names["patch_embed.bias"] = "patch_embed.proj.bias"
    state = theirs.state_dict()
    for tensor in state.values():
        nn.init.normal_(tensor, std=0.2)
    mapped = {name: state[names.get(name, name)] for name in ours.state_dict()}
    mapped["patch_embed.weight"] = mapped["patch_embed.weight"].reshape(48, 3, 2, 4, 4)
    assert len(mapped) == len(state)
    ours.load_state_dict(mapped)
    return ours.eval(), theirs.eval()


def image_and_volume() -> tuple[Tensor, Tensor]:
    volume = torch.randn(2, 3, 2, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return volume.flatten(1, 2), volume


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax"])
def test_logits_equal_timms(pool: str):
    ours, theirs = twins(global_pool=pool)
    image, volume = image_and_volume()
    features = ours.forward_features(volume)
    close(features, theirs.forward_features(image))
    close(ours.forward_head(features, pre_logits=True), theirs.forward_head(theirs.forward_features(image), True))
    close(ours.forward_head(features), theirs(image))


def test_calling_gives_the_same_features():
    ours, _ = twins()
    _, volume = image_and_volume()
    out = ours(volume)
    close(torch.cat([out.cls[:, None], out.registers, out.patches], dim=1), ours.forward_features(volume))


@pytest.mark.parametrize("indices", [None, 1, 3, [0, 2], [-1, 1], (3,), [2, 2]])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("stop_early", [False, True])
def test_intermediates_equal_timms(indices: Any, norm: bool, stop_early: bool):
    ours, theirs = twins()
    image, volume = image_and_volume()
    options = {"indices": indices, "norm": norm, "stop_early": stop_early}
    final, features = ours.forward_intermediates(volume, **options)
    their_final, their_features = theirs.forward_intermediates(image, **options)
    close(final, their_final)
    assert len(features) == len(their_features)
    for mine, other in zip(features, their_features, strict=True):
        assert mine.shape == (2, 48, 1, 2, 3)
        close(mine[:, :, 0], other)
    options |= {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
    pairs, their_pairs = ours.forward_intermediates(volume, **options), theirs.forward_intermediates(image, **options)
    for (patches, prefix), (their_patches, their_prefix) in zip(pairs, their_pairs, strict=True):
        close(patches, their_patches)
        close(prefix, their_prefix)


@pytest.mark.parametrize("reshape", [False, True])
def test_dinos_name_for_intermediates_equals_timms(reshape: bool):
    ours, theirs = twins()
    image, volume = image_and_volume()
    mine = ours.get_intermediate_layers(volume, n=2, reshape=reshape, norm=True)
    other = theirs.get_intermediate_layers(image, n=2, reshape=reshape, norm=True)
    for a, b in zip(mine, other, strict=True):
        close(a[:, :, 0] if reshape else a, b)


def test_attributes_that_code_for_timm_reads():
    ours, theirs = twins()
    for name in ("num_features", "embed_dim", "head_hidden_size", "num_prefix_tokens", "num_classes"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert [f["module"] for f in ours.feature_info] == [f["module"] for f in theirs.feature_info]
    assert ours.feature_info[0]["reduction"] == (2, 4, 4)


def test_reset_classifier():
    ours, _ = twins()
    _, volume = image_and_volume()
    ours.reset_classifier(7, "avg")
    head = ours.get_classifier()
    assert isinstance(head, nn.Linear)
    assert (head.out_features, head.weight.dtype, ours.num_classes) == (7, torch.float64, 7)
    assert ours.forward_head(ours.forward_features(volume)).shape == (2, 7)
    ours.reset_classifier(0)
    assert ours.global_pool == "avg"
    features = ours.forward_features(volume)
    close(ours.forward_head(features), features[:, 3:].mean(1))
    ours.reset_classifier(0, "")
    close(ours.forward_head(features), features)


def test_timms_layer_decay_groups_every_parameter():
    encoder = VisionTransformer(in_channels=1, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=2)
    groups = timm.optim.param_groups_layer_decay(
        encoder, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=encoder.no_weight_decay()
    )
    setting = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = {name: setting[id(p)] for name, p in encoder.named_parameters()}
    assert named["patch_embed.weight"] == (0.5**4, 0.05)
    assert named["cls_token"] == named["register_tokens"] == named["mask_token"] == (0.5**4, 0.0)
    assert named["blocks.0.attn.qkv.weight"] == (0.5**3, 0.05)
    assert named["blocks.2.mlp.fc1.weight"] == (0.5, 0.05)
    assert named["blocks.2.ls1.gamma"] == (0.5, 0.0)
    assert named["norm.weight"] == (0.5, 0.0)  # timm counts the final norm to the last block
    assert named["head.weight"] == (1.0, 0.05)


def test_no_weight_decay_names_the_tokens_and_the_table():
    ours, _ = twins()
    assert ours.no_weight_decay() == {"cls_token", "register_tokens", "positions.table"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"indices": 0}, "indices"),
        ({"indices": 5}, "indices"),
        ({"indices": [4]}, "indices"),
        ({"indices": []}, "indices"),
        ({"output_fmt": "NCHW"}, "NCDHW"),
    ],
)
def test_misfits_are_named(options: dict[str, Any], text: str):
    ours, _ = twins()
    with pytest.raises(ConfigError, match=text):
        ours.forward_intermediates(image_and_volume()[1], **options)
    with pytest.raises(ConfigError, match="global_pool"):
        ours.reset_classifier(2, "map")

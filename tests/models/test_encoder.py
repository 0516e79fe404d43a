import dataclasses

import pytest
import torch

from fmct import config as configs
from fmct.errors import ConfigError
from fmct.models import encoder as encoders
from fmct.models.encoder import SIZES, EncoderConfig, VisionTransformer, build_encoder, fmhct_vit_base
from tests.models.references_encoder import head_ct_sincos

COUNTS = {"tiny": 6_131_136, "small": 22_879_104, "base": 88_225_536, "large": 306_562_048, "giant": 1_139_688_960}


def count(encoder: VisionTransformer) -> int:
    return sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes_have_their_documented_parameters(size: str):
    make = getattr(encoders, f"vit_{size}")
    with torch.device("meta"):
        encoder = make(in_channels=1, patch_size=16)
        built = build_encoder(EncoderConfig(size=size), 1)
    assert count(encoder) == count(built) == COUNTS[size]
    assert f"{COUNTS[size]:,}" in make.__doc__.replace(" ", ",")
    width, depth, heads = SIZES[size]
    assert (encoder.embed_dim, len(encoder.blocks), encoder.blocks[0].attn.num_heads) == (width, depth, heads)
    assert encoder.blocks[0].attn.head_dim == 64


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 89_404_416),
        ({"qkv_bias": True}, 89_432_064),
        ({"qkv_bias": True, "num_registers": 4}, 89_435_136),
        ({"mask_token": True}, 89_404_416 + 768),
    ],
)
def test_head_ct_layout_has_the_published_parameters(settings: dict[str, bool | int], expected: int):
    with torch.device("meta"):
        assert count(fmhct_vit_base(**settings)) == expected


def test_head_ct_layout():
    encoder = fmhct_vit_base(depth=1)
    table = encoder.state_dict()["positions.table"]
    torch.testing.assert_close(table[0].double(), head_ct_sincos((8, 8, 8), 768), rtol=0, atol=1e-7)
    assert all(p.requires_grad for p in encoder.parameters())
    assert len(encoder.state_dict()) == 11 + 6
    assert encoder.patch_embed.weight.shape == (768, 3, 12, 12, 12)
    assert (encoder.blocks[0].norm1.eps, encoder.blocks[0].norm2.eps, encoder.norm.eps) == (1e-5, 1e-5, 1e-6)
    out = encoder(torch.randn(1, 3, 96, 48, 96))
    assert out.grid == (8, 4, 8)


def test_a_config_reaches_the_encoder():
    tree = {"size": "tiny", "patch_size": [4, 8, 8], "depth": 2, "position": "learned", "grid_size": [2, 2, 3]}
    config = configs.build(EncoderConfig, {**tree, "layer_scale": None, "num_registers": 1})
    encoder = build_encoder(config, 3, (2.0, 1.0, 1.0), seed=7)
    assert (encoder.patch_size, encoder.depth, encoder.spacing_mm) == ((4, 8, 8), 2, (2.0, 1.0, 1.0))
    assert encoder.state_dict()["positions.table"].shape == (1, 12, 192)
    assert encoder.seed == 7
    assert not any("gamma" in name for name in encoder.state_dict())
    assert encoder(torch.randn(1, 3, 8, 16, 24)).patches.shape == (1, 12, 192)


def test_every_key_of_the_config_is_an_argument_of_the_encoder():
    import inspect

    keys = {f.name for f in dataclasses.fields(EncoderConfig)} - {"size"}
    assert keys <= set(inspect.signature(VisionTransformer).parameters)
    defaults = {n: p.default for n, p in inspect.signature(VisionTransformer).parameters.items()}
    differing = [
        f.name
        for f in dataclasses.fields(EncoderConfig)
        if f.name in defaults
        and f.default is not dataclasses.MISSING
        and defaults[f.name] is not inspect.Parameter.empty
        if f.default != defaults[f.name]
    ]
    assert differing == []


def test_unknown_sizes_are_named():
    with pytest.raises(ConfigError, match="tiny, small, base"):
        build_encoder(EncoderConfig(size="huge"), 1)

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.models.patches import patchify
from fmct.models.vision_transformer import EncoderOutput, VisionTransformer
from tests.models.references_encoder import one_block, rotary_angles

POSITIONS = [{"position": "rope"}, {"position": "sincos"}, {"position": "learned", "grid_size": (2, 3, 2)}]


def small_encoder(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "in_channels": 2,
        "patch_size": (2, 4, 4),
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 4,
        "num_registers": 2,
        "layer_scale": 0.5,
    }
    return VisionTransformer(**{**defaults, **settings})


def volumes(batch: int, size: tuple[int, int, int], seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shapes_and_grid():
    encoder = small_encoder()
    out = encoder(torch.randn(3, 2, 4, 12, 8))
    assert isinstance(out, EncoderOutput)
    assert out.grid == (2, 3, 2)
    assert (out.cls.shape, out.registers.shape, out.patches.shape) == ((3, 48), (3, 2, 48), (3, 12, 48))
    assert encoder.num_patches((4, 12, 8)) == 12
    assert small_encoder(num_registers=0)(torch.randn(1, 2, 2, 4, 4)).registers.shape == (1, 0, 48)


def test_matches_the_textbook_encoder():
    encoder = small_encoder().double()
    x = volumes(1, (4, 12, 8))
    spacing = torch.tensor([[3.0, 0.7, 0.9]], dtype=torch.float64)
    with torch.no_grad():
        embedded = functional.conv3d(x, encoder.patch_embed.weight, encoder.patch_embed.bias, stride=(2, 4, 4))
        patches = embedded.flatten(2).transpose(1, 2)[0]
        tokens = torch.cat([encoder.cls_token[0], encoder.register_tokens[0], patches])
        angles = rotary_angles((2, 3, 2), (6.0, 2.8, 3.6), 12, 32.0, 1600.0)
        angles = torch.cat([torch.zeros(3, 6), angles])
        for layer in range(3):
            tokens = one_block(encoder, layer, tokens, angles)
        tokens = encoder.norm(tokens)
        out = encoder(x, spacing)
    torch.testing.assert_close(out.cls[0], tokens[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(out.patches[0], tokens[3:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", POSITIONS)
def test_packed_forward_equals_separate_forwards(settings: dict[str, Any]):
    encoder = small_encoder(**settings).double()
    groups = [volumes(2, (4, 12, 8)), volumes(5, (2, 4, 8), seed=1), volumes(1, (4, 12, 8), seed=2)]
    spacings = [torch.rand(len(g), 3, dtype=torch.float64) + 0.5 for g in groups[:2]] + [None]
    masks = [torch.rand(2, 12) < 0.5, None, torch.rand(1, 12) < 0.5]
    packed = encoder.forward_crops(groups, spacings, masks)
    for group, spacing, mask, out in zip(groups, spacings, masks, packed, strict=True):
        alone = encoder(group, spacing, mask)
        for a, b in zip(out[:3], alone[:3], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        assert out.grid == alone.grid


def test_volumes_that_are_cut_already_are_not_cut_again(monkeypatch: pytest.MonkeyPatch):
    encoder, x = small_encoder().double(), volumes(2, (4, 12, 8))
    expected = encoder(x)
    cut = patchify(x, encoder.patch_size)
    monkeypatch.setattr("fmct.models.patches.patchify", None)
    torch.testing.assert_close(encoder(x, patches=cut), expected, rtol=0, atol=0)


def test_packed_gradients_equal_separate_gradients():
    encoder = small_encoder().double()
    twin = copy.deepcopy(encoder)
    groups = [volumes(2, (4, 8, 8)), volumes(3, (2, 4, 4), seed=1)]
    sum(o.patches.square().sum() + o.cls.sum() for o in encoder.forward_crops(groups)).backward()
    for group in groups:
        out = twin(group)
        (out.patches.square().sum() + out.cls.sum()).backward()
    for (name, a), b in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("settings", POSITIONS)
def test_a_crop_does_not_see_its_neighbours(settings: dict[str, Any]):
    encoder = small_encoder(**settings).double()
    x = volumes(4, (4, 8, 8))
    torch.testing.assert_close(encoder(x).patches[2:3], encoder(x[2:3]).patches, rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", [*POSITIONS, {"swiglu": True}, {"drop_path": 0.4}])
def test_activation_checkpointing_changes_nothing(settings: dict[str, Any]):
    plain = small_encoder(**settings)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x, keys = volumes(3, (4, 8, 8)).float(), torch.arange(3)
    for encoder in (plain, saving):
        encoder(x, drop_path_keys=keys).patches.square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_a_masked_patch_is_hidden_and_keeps_its_position():
    encoder = small_encoder(position="sincos").double()
    x = volumes(1, (4, 8, 8))
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, 3] = True
    changed = x.clone()
    changed[:, :, 0:2, 4:8, 4:8] += 1.0  # the fourth patch: z 0, y 1, x 1
    torch.testing.assert_close(encoder(x, None, mask).patches, encoder(changed, None, mask).patches, rtol=0, atol=0)
    assert (encoder(x).patches - encoder(changed).patches).abs().max() > 1e-3
    moved = torch.roll(mask, 1, dims=1)
    everywhere = torch.ones_like(mask)
    hidden = encoder(x, None, everywhere).patches
    assert not torch.allclose(hidden[0, 0], hidden[0, 1])  # all are mask tokens; only positions tell them apart
    assert not torch.allclose(encoder(x, None, mask).cls, encoder(x, None, moved).cls)


@pytest.mark.parametrize("mask", [None, torch.zeros(2, 8, dtype=torch.bool)])
def test_every_parameter_has_a_gradient_even_without_a_mask(mask: Tensor | None):
    encoder = small_encoder()
    out = encoder(torch.randn(2, 2, 4, 8, 8), None, mask)
    (out.cls.square().sum() + out.patches.sum()).backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert without == []
    assert encoder.mask_token is not None
    assert encoder.mask_token.grad is not None
    assert encoder.mask_token.grad.abs().max() == 0


@pytest.mark.parametrize("settings", [*POSITIONS, {"swiglu": True}, {"num_classes": 3}])
def test_initialisation_reaches_every_parameter(settings: dict[str, Any]):
    encoder = small_encoder(**settings)
    with torch.no_grad():
        for tensor in (*encoder.parameters(), *encoder.buffers()):
            tensor.fill_(float("nan"))
    encoder.init_weights()
    bad = [name for name, tensor in encoder.state_dict().items() if not tensor.isfinite().all()]
    assert bad == []
    assert encoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.blocks[0].ls1.gamma.eq(0.5).all()
    assert encoder.mask_token is not None
    assert encoder.mask_token.abs().max() == 0
    assert encoder(torch.randn(1, 2, 4, 8, 8)).cls.isfinite().all()


def test_an_encoder_built_without_memory_becomes_a_whole_one():
    with torch.device("meta"):
        encoder = small_encoder()
    encoder.to_empty(device="cpu")
    encoder.init_weights()
    assert encoder(torch.randn(1, 2, 4, 8, 8)).cls.isfinite().all()


def test_drop_path_in_training_depends_on_keys_alone():
    encoder = small_encoder(drop_path=0.5).double()
    x, keys = volumes(6, (2, 4, 8)), torch.arange(100, 106)
    out = encoder(x, drop_path_keys=keys).patches
    again = encoder(x[3:5], drop_path_keys=keys[3:5]).patches
    torch.testing.assert_close(out[3:5], again, rtol=0, atol=1e-10)
    assert not torch.allclose(out, encoder(x, drop_path_keys=keys + 6).patches)
    other = encoder.forward_crops([x[:2], x[2:]], drop_path_keys=[keys[:2], keys[2:]])
    torch.testing.assert_close(torch.cat([o.patches for o in other]), out, rtol=0, atol=1e-10)
    encoder.eval()
    torch.testing.assert_close(encoder(x).patches, small_encoder().double().eval()(x).patches, rtol=0, atol=1e-10)


def test_a_dropped_branch_adds_nothing_and_a_kept_one_is_scaled_up():
    encoder = small_encoder(drop_path=0.5, depth=1).double()
    x = volumes(64, (2, 4, 4))
    keys = torch.arange(64)
    trained = encoder(x, drop_path_keys=keys)
    rows, packing, rotary, _, _ = encoder._embed([x], None, None, [keys])
    block = encoder.blocks[0]
    with torch.no_grad():
        doubled = rows + 2 * block.ls1(block.attn(block.norm1(rows), packing, rotary))
        expected = []
        for start in (rows, doubled):
            expected += [start, start + 2 * block.ls2(block.mlp(block.norm2(start)))]
        kinds = torch.stack([packing.split(encoder.norm(e))[0][:, 0] for e in expected])  # (4, B, E)
    nearest = (kinds - trained.cls).abs().amax(-1)
    assert nearest.amin(0).max() < 1e-10
    assert set(nearest.argmin(0).tolist()) == {0, 1, 2, 3}


def test_random_rescaling_is_drawn_by_key_and_only_in_training():
    encoder = small_encoder(rope_rescale=2.0, rope_min_period_mm=4.0).double()
    x, keys = volumes(4, (4, 8, 8)), torch.arange(4)
    out = encoder(x, drop_path_keys=keys).patches
    torch.testing.assert_close(out[1:3], encoder(x[1:3], drop_path_keys=keys[1:3]).patches, rtol=0, atol=1e-10)
    assert not torch.allclose(out, encoder(x, drop_path_keys=keys + 4).patches, atol=1e-6)
    encoder.eval()
    fixed = small_encoder(rope_min_period_mm=4.0).double()(x).patches
    torch.testing.assert_close(encoder(x).patches, fixed, rtol=0, atol=1e-12)


def test_training_under_bfloat16_autocast_keeps_float32_parameters_and_residuals():
    encoder = small_encoder(drop_path=0.1)
    x = torch.randn(2, 2, 4, 8, 8)
    mask = torch.rand(2, 8) < 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, *_ = encoder._embed([x], None, [mask], [torch.arange(2)])
        out = encoder(x, None, mask, drop_path_keys=torch.arange(2))
    assert rows.dtype == torch.float32
    out.patches.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in encoder.parameters())
    exact = encoder(x, None, mask, drop_path_keys=torch.arange(2)).patches
    assert (out.patches.float() - exact).abs().max() < 0.1


@pytest.mark.parametrize("settings", POSITIONS)
def test_weights_in_bfloat16_run(settings: dict[str, Any]):
    encoder = small_encoder(**settings).bfloat16().eval()
    assert encoder(torch.randn(1, 2, 4, 8, 8, dtype=torch.bfloat16)).patches.dtype == torch.bfloat16


def test_tables_made_for_inference_serve_training_too():
    encoder = small_encoder(position="sincos")
    x = torch.randn(1, 2, 4, 8, 8)
    with torch.inference_mode():
        encoder(x)
    encoder(x).patches.sum().backward()
    rotary = small_encoder()
    with torch.inference_mode():
        rotary(x)
    rotary(x).patches.sum().backward()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"position": "alibi"}, "position"),
        ({"position": "learned"}, "grid_size"),
        ({"num_heads": 5}, "heads"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"depth": 0}, "depth"),
        ({"num_registers": -1}, "num_registers"),
        ({"rope_min_period_mm": 0.0}, "rope"),
        ({"rope_rescale": 0.5}, "rope_rescale"),
        ({"embed_dim": 16, "num_heads": 4}, "head dimension"),
        ({"global_pool": "mean"}, "global_pool"),
        ({"patch_size": (2, 2)}, "patch_size"),
        ({"position": "sincos", "sincos_unit": "cm"}, "sincos_unit"),
        ({"position": "learned", "grid_size": 2, "position_initial": "zeros"}, "position_initial"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], text: str):
    with pytest.raises(ConfigError, match=text):
        small_encoder(**settings)


def test_the_output_passes_through_data_parallel_training(tmp_path):
    """DistributedDataParallel finds every tensor in the output, and no parameter goes unused without a mask."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        encoder = small_encoder(drop_path=0.3, activation_checkpointing=True)
        twin = copy.deepcopy(encoder)
        parallel = torch.nn.parallel.DistributedDataParallel(encoder)
        x, keys = torch.randn(2, 2, 4, 8, 8), torch.arange(2)
        for model in (parallel, twin):
            out = model(x, drop_path_keys=keys)
            assert isinstance(out, EncoderOutput)
            (out.cls.sum() + out.registers.sum() + out.patches.square().sum()).backward()
        for a, b in zip(encoder.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    finally:
        torch.distributed.destroy_process_group()

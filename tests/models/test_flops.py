from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fmct.errors import ConfigError
from fmct.models.adaptation import adapt
from fmct.models.encoder import EncoderConfig, build_encoder, dimensions
from fmct.models.flops import (
    encoder_flops,
    finetune_flops,
    forward_flops,
    head_flops,
    reconstruction_flops,
    self_distillation_flops,
    step_flops,
)
from fmct.models.heads import ProjectionHead, ReconstructionHead
from fmct.models.segmenter import Segmenter

# size, global, local, patch; giga-operations forward of student globals, student locals, heads of student, of teacher
# (2 global, 8 local views, 1 channel, CLS, no registers, 65 536 prototypes, 24 % masked); tera-operations of the step
TABLE = [
    ("small", 96, 48, 16, 21.5, 10.3, 5.0, 4.7, 0.14),
    ("base", 96, 48, 16, 79.9, 39.6, 5.2, 4.8, 0.46),
    ("base", 128, 64, 16, 200, 92.8, 11.7, 11.3, 1.13),
    ("base", 160, 64, 16, 427, 92.8, 22, 22, 2.07),
    ("base", 96, 48, 8, 811, 310, 38, 38, 4.33),
    ("large", 96, 48, 16, 275, 138, 5.3, 4.9, 1.53),
    ("large", 112, 64, 16, 445, 322, 8, 8, 2.78),
    ("large", 160, 64, 16, 1423, 322, 23, 23, 6.75),
    ("large", 96, 48, 8, 2680, 1087, 39, 39, 14.1),
]


@contextmanager
def torchs_own_count() -> Iterator[FlopCounterMode]:
    """Count with attention as products: where torch takes a fused attention on a CPU, that is not in its count."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(str(v) for v in row[:4]))
def test_published_table(row: tuple[str, int, int, int, float, float, float, float, float]):
    size, whole, part, patch, student_global, student_local, _, _, step = row
    config = EncoderConfig(size=size, patch_size=[patch] * 3, num_registers=0)
    assert 2 * encoder_flops(config, [whole] * 3, in_channels=1) / 1e9 == pytest.approx(student_global, rel=0.02)
    assert 8 * encoder_flops(config, [part] * 3, in_channels=1) / 1e9 == pytest.approx(student_local, rel=0.02)
    total = self_distillation_flops(config, in_channels=1, global_size=[whole] * 3, local_size=[part] * 3)
    assert total / 1e12 == pytest.approx(step, rel=0.03)


@pytest.mark.parametrize("row", [*TABLE[:3], TABLE[5]], ids=lambda row: "-".join(str(v) for v in row[:4]))
def test_published_heads(row: tuple[str, int, int, int, float, float, float, float, float]):
    size, whole, _, patch, _, _, student, teacher, _ = row
    width, _, _ = dimensions(EncoderConfig(size=size))
    masked = 2 * (whole // patch) ** 3 * 0.24
    for views, expected in ((10, student), (2, teacher)):
        assert head_flops(1, in_dim=width) * (views + masked) / 1e9 == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("size", [(8, 8, 16), (8, 16, 16)])
def test_encoder_agrees_with_torchs_own_count(size: Sequence[int], swiglu: bool):
    config = EncoderConfig(
        embed_dim=48, depth=2, num_heads=4, patch_size=[4, 4, 8], num_registers=3, swiglu=swiglu, mlp_ratio=3.0
    )
    encoder = build_encoder(config, 2)
    x = torch.randn(2, 2, *size)
    with torchs_own_count() as counter:
        encoder(x)
    assert counter.get_total_flops() == 2 * encoder_flops(config, size, in_channels=2)


def test_a_step_agrees_with_torchs_own_count():
    """Backward is twice forward, but for the patch embedding, whose input wants no gradient."""
    config = EncoderConfig(embed_dim=48, depth=2, num_heads=4, patch_size=[4, 4, 4], position="sincos")
    student, teacher = build_encoder(config, 1), build_encoder(config, 1)
    x = torch.randn(3, 1, 8, 8, 8)
    with torchs_own_count() as counter:
        with torch.no_grad():
            teacher(x)
        student(x).patches.sum().backward()
    forward = 3 * encoder_flops(config, (8, 8, 8), in_channels=1)
    without = 2 * 3 * 8 * 48 * 64
    counted = counter.get_total_flops()
    # the fused attention kernel recomputes its scores in the backward pass: five products where the model counts four
    scores = 3 * 2 * 2 * (8 + 5) ** 2 * 48
    assert step_flops(forward, forward) - without <= counted <= step_flops(forward, forward) - without + scores


def test_heads_agree_with_torchs_own_count():
    head, rebuild = ProjectionHead(24, 40, 16, 100), ReconstructionHead(24, (2, 4, 4), 3)
    with torchs_own_count() as counter:
        head(torch.randn(7, 24))
    counted = counter.get_total_flops()
    assert counted == head_flops(7, in_dim=24, hidden_dim=40, bottleneck_dim=16, num_prototypes=100)
    with torchs_own_count() as counter:
        rebuild(torch.randn(7, 24))
    assert counter.get_total_flops() == reconstruction_flops(7, embed_dim=24, patch_size=(2, 4, 4), channels=3)
    assert prod((2, 4, 4)) * 3 * 24 * 14 == counter.get_total_flops()


def test_no_local_views_means_none():
    config = EncoderConfig(size="tiny", num_registers=0)
    alone = self_distillation_flops(config, in_channels=1, global_size=[96] * 3, local_size=None)
    zero = self_distillation_flops(config, in_channels=1, global_size=[96] * 3, local_size=[48] * 3, local_views=0)
    assert alone == zero > 0


def small_segmenter() -> Segmenter:
    config = EncoderConfig(embed_dim=48, depth=2, num_heads=4, patch_size=[4, 4, 4], position="sincos")
    return Segmenter(build_encoder(config, 1), taps=2, width=16, stem_channels=4)


def test_any_network_is_counted_without_running_it():
    model, x = small_segmenter(), torch.randn(2, 1, 8, 8, 8)
    config = EncoderConfig(embed_dim=48, depth=2, num_heads=4, patch_size=[4, 4, 4])
    assert forward_flops(model.encoder, x) == 2 * encoder_flops(config, (8, 8, 8), in_channels=1)
    with torchs_own_count() as counter:
        model(x)
    assert forward_flops(model, x) == counter.get_total_flops()
    assert forward_flops(model, x, torch.ones(2, 3)) == counter.get_total_flops()


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_a_finetuning_step_agrees_with_torchs_own_count(mode: str):
    """Within 3 %: first layers want no gradient of their input, and fused attention recomputes its scores."""
    model, x = small_segmenter(), torch.randn(2, 1, 8, 8, 8)
    encoder = forward_flops(model.encoder, x)
    heads = forward_flops(model, x) - encoder
    adapt(model, mode, rank=2)
    adapters = forward_flops(model.encoder, x) - encoder
    assert (adapters > 0) == (mode == "lora")
    with torchs_own_count() as counter:
        model(x).logits.sum().backward()
    assert finetune_flops(encoder, heads, mode=mode, adapters=adapters) == pytest.approx(
        counter.get_total_flops(), rel=0.03
    )
    with pytest.raises(ConfigError, match="frozen, lora, full"):
        finetune_flops(1, 1, mode="none")

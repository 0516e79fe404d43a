"""Names of operations become kinds of work, and times a sentence."""

import pytest
import torch

from fmct.bench.profile import KINDS, gap, kind_of, profiled


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "products"),
        ("aten::mm", "products"),
        ("aten::bmm", "products"),
        ("aten::mkldnn_linear", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "products"),
        ("nvjet_hsh_128x256_64x4", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits>", "attention"),
        ("aten::copy_", "copies and casts"),
        ("aten::cat", "copies and casts"),
        ("aten::_foreach_lerp_", "optimiser and average"),
        ("aten::lerp_", "optimiser and average"),
        ("aten::native_layer_norm_backward", "norms and activations"),
        ("aten::gelu", "norms and activations"),
        ("aten::mul_", "element-wise"),
        ("enumerate(DataLoader)", "other"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def test_the_gap_is_arithmetic():
    shares = dict.fromkeys([*(kind for kind, _ in KINDS), "other"], 0.0)
    shares |= {"products": 0.5, "attention": 0.1, "copies and casts": 0.3, "other": 0.1}
    # 2 s at a best of 10 FLOP/s could do 20; 9 were done: 45 %, in 60 % of the time, so at 75 % of the best's speed.
    text = gap(shares, seconds=2.0, flops=9.0, best=10.0)
    assert text.startswith("45 % of the best product: products and attention take 60 % of the time (at 75 %")
    assert text.endswith("the rest is copies and casts 30 %, other 10 %")


def test_a_profile_sees_the_product():
    left = torch.ones(256, 256)

    def step():
        for _ in range(20):
            torch.mm(left, left)
        left.clone()

    found = profiled(step, torch.device("cpu"), seconds=1.0, flops=1.0, best=1.0)
    assert max(found["shares"], key=found["shares"].__getitem__) == "products"
    mm = next(row for row in found["operations"] if row["name"] == "aten::mm")
    assert mm["calls"] == 20
    assert sum(found["shares"].values()) == pytest.approx(1.0)

import pytest
import torch

from fmct.errors import ConfigError, WeightsError
from fmct.models.lora import add_lora, load_lora, lora_state, merge_lora
from tests.models.networks import noise, tiny_encoder

PARTS = ("q", "k", "v", "proj")


def adapted(targets: tuple[str, ...] = PARTS) -> torch.nn.Module:
    """Return an encoder whose adapters have moved."""
    encoder = add_lora(tiny_encoder(), rank=3, alpha=6.0, targets=targets)
    for number, parameter in enumerate(p for n, p in encoder.named_parameters() if "lora_" in n):
        parameter.data.copy_(noise(*parameter.shape, seed=number))
    return encoder


def test_step_0_is_the_encoder_bit_for_bit_and_its_file_still_fits() -> None:
    plain, x = tiny_encoder(), noise(2, 1, 4, 8, 8)
    with_adapters = add_lora(tiny_encoder(), rank=3, targets=PARTS)
    assert torch.equal(plain(x).patches, with_adapters(x).patches)
    names = {name for name in with_adapters.state_dict() if "lora_" not in name}
    assert names == set(plain.state_dict())


def test_each_part_changes_its_own_rows_only() -> None:
    """The rows of qkv are q, k, v; within each they are head-major, so no part needs a transpose."""
    encoder = adapted(("k",))
    layer, x = encoder.blocks[1].attn.qkv, noise(5, 24)  # type: ignore[union-attr, index]
    change = layer(x) - torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert change[:, :24].abs().max() == 0
    assert change[:, 48:].abs().max() == 0
    expected = 2.0 * x @ layer.lora_a["k"].T @ layer.lora_b["k"].T
    torch.testing.assert_close(change[:, 24:48], expected, rtol=1e-4, atol=1e-4)


def test_merging_is_exact() -> None:
    """In float64 to rounding of the product; the merged encoder is plain and has the plain names."""
    encoder, x = adapted().double(), noise(2, 1, 4, 8, 8).double()
    before = encoder(x).patches
    assert not torch.allclose(before, tiny_encoder().double()(x).patches, rtol=1e-2)
    merge_lora(encoder)
    torch.testing.assert_close(encoder(x).patches, before, rtol=1e-10, atol=1e-10)
    assert list(encoder.state_dict()) == list(tiny_encoder().state_dict())
    assert not [m for m in encoder.modules() if type(m).__name__ == "LoraLinear"]


def test_the_adapters_alone_are_saved_and_read() -> None:
    source, x = adapted(("q", "v")), noise(1, 1, 4, 8, 8)
    state = lora_state(source)
    assert len(state) == 4 * 2 * 2
    target = add_lora(tiny_encoder(), rank=3, alpha=6.0)
    load_lora(target, state)
    assert torch.equal(target(x).patches, source(x).patches)
    with pytest.raises(WeightsError, match="same rank and targets"):
        load_lora(add_lora(tiny_encoder(), rank=4), state)
    with pytest.raises(WeightsError, match="same rank and targets"):
        load_lora(add_lora(tiny_encoder(), rank=3, targets=("q",)), state)


def test_misuse_is_explained() -> None:
    with pytest.raises(ConfigError, match="targets among q, k, v, proj"):
        add_lora(tiny_encoder(), targets=("q", "mlp"))
    with pytest.raises(ConfigError, match="already"):
        add_lora(adapted())
    with pytest.raises(ConfigError, match="has none"):
        add_lora(torch.nn.Linear(2, 2))

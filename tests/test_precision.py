import logging

import pytest
import torch
from torch import nn

from fmct import precision
from fmct.errors import ConfigError
from fmct.precision import compute_dtype, fast_bf16, measure_peak, rounded_once

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "dtype"), [({"avx2"}, "float32"), ({"avx512_bf16"}, "bfloat16"), ({"amx_bf16"}, "bfloat16")]
)
def test_auto_takes_bf16_where_the_processor_is_fast_at_it(
    flags: set[str], dtype: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    precision._tell_once.cache_clear()
    caplog.set_level(logging.INFO)
    assert [compute_dtype("auto", CPU) for _ in range(3)] == [getattr(torch, dtype)] * 3
    assert ("bf16 autocast" in caplog.text) == (dtype == "bfloat16")
    assert len(caplog.records) == 1


def test_a_wish_is_granted_and_a_mistake_named() -> None:
    assert compute_dtype("fp32", CPU) == torch.float32
    assert compute_dtype("bf16", CPU) == torch.bfloat16
    with pytest.raises(ConfigError, match="bf16"):
        compute_dtype("fp16", CPU)


def test_flags_are_read_from_this_machine() -> None:
    assert fast_bf16(CPU) in ("", "amx_bf16", "avx512_bf16")
    assert isinstance(precision.cpu_flags(), frozenset)


def test_the_peak_is_a_rate() -> None:
    assert 1e7 < measure_peak(CPU, torch.float32, sizes=(64, 128)) < 1e16


def test_weights_rounded_once_give_what_autocast_gives_and_come_back() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv3d(2, 4, 3),
        nn.BatchNorm3d(4),
        nn.ConvTranspose3d(4, 3, 2, stride=2),
        nn.Flatten(),
        nn.Linear(24, 5),
    ]
    module = nn.Sequential(*layers).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(3, 2, 3, 3, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = module(x)
        with rounded_once(module, torch.bfloat16):
            assert module[0].weight.dtype == torch.bfloat16
            assert module[1].weight.dtype == torch.float32
            assert torch.equal(module(x), expected)
        with pytest.raises(RuntimeError, match="stopped"), rounded_once(module, torch.bfloat16):
            raise RuntimeError("stopped")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

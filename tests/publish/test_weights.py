import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmct.errors import WeightsError
from fmct.models.encoder import build_encoder
from fmct.publish.weights import check_values, compare, load_into, read_weights, write_weights
from tests.publish.tiny import CONFIG, tiny_weights


def raw_file(path: Path, header: bytes, body: bytes = b"", *, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


def test_weights_come_back_as_written_and_readable_by_others(tmp_path: Path) -> None:
    weights = tiny_weights()
    write_weights(tmp_path / "w.safetensors", weights)
    found = read_weights(tmp_path / "w.safetensors")
    assert list(found) == sorted(weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o444 == 0o444


def test_load_reports_what_fitted() -> None:
    model = build_encoder(CONFIG, 2)
    report = load_into(model, tiny_weights(), where="here")
    assert report.complete
    assert len(report.matched) == len(model.state_dict())
    assert torch.equal(model.cls_token, tiny_weights()["cls_token"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "encoder.", "student."])
def test_a_wrappers_prefix_is_named(prefix: str) -> None:
    model = build_encoder(CONFIG, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped = {prefix + name: value for name, value in tiny_weights().items()}
    with pytest.raises(WeightsError, match=f"names begin with '{prefix}'") as caught:
        load_into(model, wrapped, where="here")
    assert "Remove" in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_missing_unexpected_and_misshapen_tensors_are_named_and_nothing_is_loaded() -> None:
    model = build_encoder(CONFIG, 2)
    before = model.state_dict()["norm.weight"].clone()
    weights = tiny_weights()
    del weights["cls_token"]
    weights["extra"] = torch.zeros(1)
    weights["norm.bias"] = torch.zeros(3)
    report = compare(model.state_dict(), weights)
    assert (report.missing, report.unexpected) == (("cls_token",), ("extra",))
    assert report.shape == (("norm.bias", (3,), (64,)),)
    with pytest.raises(WeightsError) as caught:
        load_into(model, weights, where="here")
    for part in ("missing: cls_token", "unexpected: extra", "norm.bias is (3,) in the file and (64,) in the model"):
        assert part in str(caught.value)
    assert torch.equal(before, model.state_dict()["norm.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weights = tiny_weights()
    weights["norm.weight"][3] = value
    with pytest.raises(WeightsError, match=r"norm\.weight holds 1 values that are NaN or infinite"):
        load_into(build_encoder(CONFIG, 2), weights, where="here")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.complex64])
def test_other_types_than_float32_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(WeightsError, match=str(dtype)):
        check_values({"a": torch.zeros(2, dtype=dtype)}, where="here")
    check_values({"a": torch.zeros(2), "count": torch.zeros(2, dtype=torch.int64)}, where="here")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (canary,)

    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(WeightsError, match=r"\.pt file is a Python pickle.*Convert it to safetensors"):
        read_weights(path)
    disguised = tmp_path / "model.safetensors"
    disguised.write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match="not a sound safetensors file"):
        read_weights(disguised)
    assert not canary.exists()


def test_lying_headers_are_refused(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": tensor}).encode()
    overlapping = json.dumps({"a": tensor, "b": {**tensor, "data_offsets": [4, 12]}}).encode()
    broken = {
        "huge": raw_file(tmp_path / "1", header, bytes(8), length=1 << 30),
        "longer than the file": raw_file(tmp_path / "2", header, length=len(header) + 100),
        "no json": raw_file(tmp_path / "3", b"{" * 20, bytes(8)),
        "a list": raw_file(tmp_path / "4", b"[1, 2, 3]", bytes(8)),
        "overlapping offsets": raw_file(tmp_path / "5", overlapping, bytes(12)),
        "cut short": raw_file(tmp_path / "6", header, bytes(4)),
        "wrong type": raw_file(tmp_path / "7", header.replace(b"F32", b"F99"), bytes(8)),
        "size and shape differ": raw_file(tmp_path / "8", header.replace(b"[2]", b"[3]"), bytes(8)),
    }
    (tmp_path / "empty").write_bytes(b"")
    broken["empty"] = tmp_path / "empty"
    for path in broken.values():
        with pytest.raises(WeightsError, match=r"not a sound safetensors file|its header is not"):
            read_weights(path)
    save_file({"a": torch.ones(2)}, tmp_path / "good")
    assert torch.equal(read_weights(tmp_path / "good")["a"], load_file(tmp_path / "good")["a"])
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(tmp_path / "absent.safetensors")

"""Weights in and out: safetensors only, checked before use, with a report of what fitted. Nothing loads silently."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fmct.errors import WeightsError

MAX_HEADER = 16 << 20  # bytes; a ViT-giant's header is under 100 kB
WRAPPERS = {
    "module.": "DistributedDataParallel or DeepSpeed",
    "_orig_mod.": "torch.compile",
    "backbone.": "a model with a head",
    "encoder.": "a model with a head",
    "student.": "a self-distillation task",
    "teacher.": "a self-distillation task",
    "model.": "a trainer",
}
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a file fitted a model: names, and for `shape` (name, in the file, in the model)."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor fitted and none was left over."""
        return not (self.missing or self.unexpected or self.shape)

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} tensors matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.shape)} of another shape"
        )


def compare(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> LoadReport:
    """Return which of the `given` tensors fit the `expected` names and shapes."""
    both = [name for name in expected if name in given]
    return LoadReport(
        matched=tuple(name for name in both if expected[name].shape == given[name].shape),
        missing=tuple(name for name in expected if name not in given),
        unexpected=tuple(name for name in given if name not in expected),
        shape=tuple(
            (name, tuple(given[name].shape), tuple(expected[name].shape))
            for name in both
            if expected[name].shape != given[name].shape
        ),
    )


def load_into(model: nn.Module, tensors: Mapping[str, torch.Tensor], *, where: str) -> LoadReport:
    """Load `tensors` into `model`, all of them or none, and return the report.

    Raises WeightsError that names what is missing, unexpected, misshapen or not finite, and what to do.
    """
    expected = model.state_dict()
    report = compare(expected, tensors)
    if not report.complete:
        raise WeightsError(f"{where}: the weights do not fit the model: {report}. {_advice(report, set(expected))}")
    check_values(tensors, where=where)
    model.load_state_dict(dict(tensors), strict=True)
    return report


def check_values(tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Raise WeightsError unless every tensor is float32 (or an integer buffer) and finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise WeightsError(
                f"{where}: {name} is {tensor.dtype}; published weights are float32. Export the run again."
            )
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise WeightsError(f"{where}: {name} is {tensor.dtype}, which no encoder holds. Export the run again.")
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise WeightsError(
                f"{where}: {name} holds {bad} values that are NaN or infinite: the training run broke before this was "
                "saved. Export an earlier checkpoint (fmct export RUN ENCODER --step N)."
            )


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, on the CPU. Raises WeightsError; a pickle is never opened."""
    if path.suffix in _PICKLES:
        raise WeightsError(
            f"{path}: a {path.suffix} file is a Python pickle, which can run code when opened; it was not opened. "
            "Convert it to safetensors where it came from."
        )
    _check_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a sound safetensors file ({error}). Export or download it again.") from None


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, names sorted, values contiguous on the CPU."""
    content = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    save_file(content, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by the owner alone


def _check_header(path: Path) -> None:
    """Refuse a header that lies about its size before anything is allocated for it."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise WeightsError(
                    f"{path}: a header of {length} bytes in a file of {size} bytes (limit {MAX_HEADER}): "
                    "not a sound safetensors file. Export or download it again."
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}). Expected a safetensors file there.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path}: its header is not JSON ({error}). Export or download it again.") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: its header is not a table of tensors. Export or download it again.")


def _advice(report: LoadReport, expected: set[str]) -> str:
    for prefix, wrapper in WRAPPERS.items():
        stripped = [name.removeprefix(prefix) for name in report.unexpected if name.startswith(prefix)]
        if stripped and sum(name in expected for name in stripped) >= 0.9 * len(stripped):
            return (
                f"The names begin with {prefix!r}: they were saved out of {wrapper}. "
                f"Remove {prefix!r} from every name, or write the folder with `fmct export`, which does."
            )
    details = []
    for label, names in (("missing", report.missing), ("unexpected", report.unexpected)):
        if names:
            details.append(f"{label}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}")
    if report.shape:
        name, found, wanted = report.shape[0]
        details.append(
            f"{name} is {found} in the file and {wanted} in the model (another size, patch or channel count)"
        )
    return f"{'; '.join(details)}. Use the config.json that was written with these weights."

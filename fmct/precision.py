"""Which number format to compute in on this device, and how fast it multiplies matrices."""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import nn

from fmct.errors import ConfigError

PRECISIONS = ("auto", "bf16", "fp32")
_PRODUCTS = (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)
log = logging.getLogger(__name__)


def cpu_flags() -> frozenset[str]:
    """Return the processor's instruction-set flags as Linux names them; empty where it does not say."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return frozenset()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def fast_bf16(device: torch.device) -> str:
    """Return what makes bf16 fast on the device (`amx_bf16`, `avx512_bf16`, a GPU's name), or an empty string."""
    if device.type == "cuda":
        supported = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.cuda.get_device_name(device) if supported else ""
    flags = cpu_flags()
    return next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), "")


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return torch.bfloat16 or torch.float32 for `auto`, `bf16` or `fp32`; the choice of `auto` is logged once."""
    if precision not in PRECISIONS:
        raise ConfigError(f"engine.precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    reason = fast_bf16(device)
    if reason:
        _tell_once(f"precision: bf16 autocast, because of {reason}; parameters, gradients and moments stay fp32")
        return torch.bfloat16
    _tell_once(f"precision: fp32, because this {device.type} has no fast bf16")
    return torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which products are in the type of their operands; `meta`, for counting, knows no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def rounded_once(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Run a block of autocast to `dtype` with the weights of products rounded beforehand, and put them back after it.

    Autocast rounds them in every call; here that is once, with the same results. Without gradients only. A linear layer
    or convolution that is run outside of autocast in the block raises torch's RuntimeError of unequal types.
    """
    products = [part for part in module.modules() if type(part) in _PRODUCTS]
    before = [(weight, weight.data) for part in products for weight in part.parameters(recurse=False)]
    try:
        for weight, data in before:
            weight.data = data.to(dtype)
        yield
    finally:
        for weight, data in before:
            weight.data = data


@cache
def _tell_once(message: str) -> None:
    """Log a message the first time: predictions ask for every series, and a process has one answer."""
    log.info(message)


def measure_peak(device: torch.device, dtype: torch.dtype, *, sizes: tuple[int, ...] = (1024, 2048)) -> float:
    """Return the best FLOP/s (2 per multiply-add) of a square matrix product on the device, the floor for MFU.

    Three products per size, the fastest counts. About a second on two CPU cores.
    """
    best = 0.0
    with torch.no_grad():
        for size in sizes:
            left = torch.ones(size, size, dtype=dtype, device=device)
            right = torch.ones(size, size, dtype=dtype, device=device)
            for _ in range(4):  # the first warms up
                _synchronise(device)
                start = time.perf_counter()
                torch.mm(left, right)
                _synchronise(device)
                best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What a figure was measured on. No host name, no user, no path: the file may be shown to anybody."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from fmct.cores import available_cores
from fmct.precision import fast_bf16

NOMINAL_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense FLOP/s of the data sheets, by part of the name


def machine_facts(threads: int) -> dict[str, Any]:
    """Return processor, cores, threads in use, memory, versions, load and GPU of this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "threads": threads,
        "memory_gb": _memory_gb(),
        "fast_bf16": fast_bf16(device),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
    return facts | {"load_average": load_average()}


def load_average() -> list[float] | None:
    """Return the load averages of 1, 5 and 15 minutes, None where the system keeps none. An idle machine is near 0."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def nominal_peak(device: torch.device) -> float | None:
    """Return the dense bf16 FLOP/s of a GPU's data sheet, None when it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in NOMINAL_BF16.items() if part in name), None)


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None

"""Where a training step's time goes, by kind of work: names the gap to the matrix product."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

ROWS = 14
KINDS = (  # the first that matches an operation's or kernel's name
    ("attention", r"scaled_dot_product|flash|attention|fmha"),
    ("products", r"\bmm\b|addmm|bmm|linear|matmul|gemm|mkldnn|cutlass|nvjet|convolution"),
    ("optimiser and average", r"adam|_foreach|lerp|multi_tensor"),
    ("norms and activations", r"layer_norm|gelu|softmax|logsumexp|sigmoid|silu|normalize"),
    (
        "copies and casts",
        r"copy|_to_copy|\bto\b|\bcat\b|clone|contiguous|index|gather|scatter|memcpy|memset|zero_|fill_",
    ),
    ("element-wise", r"\bmul|\badd|\bsub|\bdiv|\bsum|mean|\bexp|\blog|\bpow|sqrt|where|clamp|norm|elementwise|reduce"),
)


def profiled(
    step: Callable[[], object], device: torch.device, seconds: float, flops: float, best: float
) -> dict[str, Any]:
    """Return a profile of one step: shares by kind of work, the largest operations, and one sentence on the gap.

    seconds: of a step without the profiler; flops: of the step; best: FLOP/s of the best square product. Times are of
    the GPU's kernels, or of the operations in the main thread and autograd's on a CPU (self time).
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = [(row.key, float(getattr(row, attribute)), int(row.count)) for row in profiler.key_averages()]
    total = sum(time for _, time, _ in found) or 1.0
    shares = dict.fromkeys([*(kind for kind, _ in KINDS), "other"], 0.0)
    for name, time, _ in found:
        shares[kind_of(name)] += time / total
    found.sort(key=lambda row: -row[1])
    operations = [
        {"name": name[:80], "ms": time / 1e3, "share": time / total, "calls": count}
        for name, time, count in found[:ROWS]
    ]
    return {"shares": shares, "operations": operations, "gap": gap(shares, seconds, flops, best)}


def kind_of(name: str) -> str:
    """Return the kind of work of an operation or kernel."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def gap(shares: dict[str, float], seconds: float, flops: float, best: float) -> str:
    """Return a sentence that says how far the step is from the best product, and what the rest of the time is."""
    products = shares["products"] + shares["attention"]
    ideal = flops / best / seconds
    others = sorted((item for item in shares.items() if item[0] not in ("products", "attention")), key=lambda i: -i[1])
    rest = ", ".join(f"{name} {100 * share:.0f} %" for name, share in others if share >= 0.01)
    speed = ideal / products if products else 0.0
    return (
        f"{100 * ideal:.0f} % of the best product: products and attention take {100 * products:.0f} % of the time "
        f"(at {100 * speed:.0f} % of the best square product's speed); the rest is {rest or 'nothing'}"
    )

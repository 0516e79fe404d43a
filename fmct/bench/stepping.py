"""Training steps as a recipe runs them, taken apart: runs in a process of its own (see fmct.bench.fresh)."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from fmct.bench.machine import nominal_peak
from fmct.bench.profile import profiled
from fmct.bench.workbench import recipe_config
from fmct.heap import tune_memory
from fmct.residence import peak_resident, resident
from fmct.train.engine import Engine
from fmct.train.engines import build_engine

PHASES = ("data", "forward", "backward", "update", "average")


def measure_step(
    *,
    recipe: str,
    store: str,
    batch: int,
    rounds: int,
    products: Sequence[int],
    overrides: Sequence[str] = (),
    profile: bool = False,
) -> dict[str, Any]:
    """Return seconds, rates, shares, phases, memory and, when asked for, a profile of a recipe's training step.

    A step is all of it: views read and rendered, student and teacher, heads, losses, backward, clipping, AdamW and the
    teacher's average. products: sides of the square matrix products that run between the steps. On a CPU the views are
    read by this process too; on a GPU by the recipe's workers.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        tune_memory()  # as the verbs do
    kind = [] if importlib.util.find_spec("deepspeed") else ["engine.kind=torch"]
    workers = [] if device.type == "cuda" else ["data.workers=0"]
    words = [f"store={store}", f"batch_size={batch}", "engine.accumulate=1", *workers, *kind, *overrides]
    module, config = recipe_config(recipe, words)
    plan = module.plan(config, device)
    engine = build_engine(plan.task, config=plan.engine, optim=plan.optim, device=device)
    batches: Any = plan.batches_from(0)
    step = partial(one_step, engine, batches, plan.schedule.at(plan.steps // 2), device)
    before = resident() if device.type == "cpu" else torch.cuda.memory_allocated(device)
    for _ in range(3):  # the first ones take memory from the system, page by page on a CPU
        step(synchronise=False)
    timed, best = between_products(step, rounds=rounds, products=products, dtype=engine.dtype, device=device)
    phases = step(synchronise=True)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()
    flops = batch * plan.flops_per_volume
    result = {
        "recipe": recipe,
        "batch": batch,
        "checkpointing": config.encoder.activation_checkpointing,
        "engine": config.engine.kind,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **rates(timed, best, batch, flops, nominal_peak(device)),
        "phases_share": {name: phases[name] / phases["whole"] for name in PHASES},
        "peak_memory_mb": memory / 1e6,
        "before_first_step_mb": before / 1e6,
    }
    if profile:
        result["profile"] = profiled(partial(step, synchronise=True), device, phases["whole"], flops, max(best))
    engine.close()
    batches.close()
    return result


def rates(
    timed: Sequence[dict[str, float]], best: Sequence[float], batch: int, flops: float, nominal: float | None
) -> dict[str, Any]:
    """Return what follows from the steps' seconds and the products (FLOP/s) before, between and after them."""
    step = statistics.median(seconds["whole"] for seconds in timed)
    neighbours = zip(timed, pairwise(best), strict=True)
    shares = [flops / seconds["whole"] / max(around) for seconds, around in neighbours]
    return {
        "step_s": step,
        "volumes_per_second": batch / step,
        "tflop_per_volume": flops / batch / 1e12,
        "tflop_per_second": flops / step / 1e12,
        "best_product_tflop_per_second": max(best) / 1e12,
        "share": statistics.median(shares),
        "share_of_rounds": shares,
        "mfu_of_data_sheet": flops / step / nominal if nominal else None,
        "data_wait": statistics.median(seconds["data"] / seconds["whole"] for seconds in timed),
    }


def one_step(
    engine: Engine, batches: Iterator[Any], values: dict[str, float], device: torch.device, *, synchronise: bool
) -> dict[str, float]:
    """Return the seconds of one training step by phase, and `whole`.

    synchronise: wait for a GPU after each phase, so that phases are told apart (and no longer overlap); on a CPU they
    never overlap. Without it only `data`, as the process waits for it, and `whole` mean something on a GPU.
    """
    mark = partial(_now, device) if synchronise else time.perf_counter
    clock = [_now(device)]
    batch = next(batches)
    clock.append(mark())
    output = engine.forward(batch, values)
    clock.append(mark())
    engine.backward(output.loss)
    clock.append(mark())
    update = engine.step(values)
    clock.append(mark())
    assert update is not None
    assert update.applied, "a step of a bench is finite and whole"
    engine.task.after_update(values)
    clock.append(_now(device))
    seconds = {name: b - a for name, (a, b) in zip(PHASES, pairwise(clock), strict=True)}
    return seconds | {"whole": clock[-1] - clock[0]}


def between_products(
    step: Callable[..., dict[str, float]],
    *,
    rounds: int,
    products: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list[dict[str, float]], list[float]]:
    """Return (seconds of each round's step, FLOP/s of the best product before, between and after them)."""
    timed, best = [], [best_product(products, dtype, device)]
    for _ in range(rounds):
        timed.append(step(synchronise=False))
        best.append(best_product(products, dtype, device))
    return timed, best


def best_product(sides: Sequence[int], dtype: torch.dtype, device: torch.device) -> float:
    """Return the best FLOP/s of square matrix products of these sides."""
    return max(product_rate(side, dtype, device) for side in sides)


def product_rate(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the best FLOP/s of a square matrix product of `side`, of three or of a fifth of a second's worth."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    torch.mm(left, right, out=out)
    fastest, began, tries = float("inf"), _now(device), 0
    while tries < 3 or time.perf_counter() - began < 0.2:
        start = _now(device)
        torch.mm(left, right, out=out)
        fastest = min(fastest, _now(device) - start)
        tries += 1
    return 2 * side**3 / fastest


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

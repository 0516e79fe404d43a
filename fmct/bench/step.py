"""Whole training steps of the shipped recipes: share of the best square product, and what the rest of the time is."""

import dataclasses
import math
from typing import Any

import torch

from fmct.bench.figures import Figure
from fmct.bench.fresh import in_fresh_process
from fmct.bench.stepping import measure_step
from fmct.bench.workbench import FULL, GPU_PRODUCTS, GPU_RECIPES, Sizes, Workbench

CHECKPOINTING = "encoder.activation_checkpointing"


def bench_step(bench: Workbench) -> list[Figure]:
    """Return, for each recipe, FLOP/s beside the best square product, volumes/s, data wait, profile and memory."""
    figures: list[Figure] = []
    for recipe in for_this_device(bench.sizes).step_recipes:
        figures += _figures_of(step_of(bench, recipe), judged=bench.sizes.comparable)
    return figures + memory_figures(bench)


def for_this_device(sizes: Sizes) -> Sizes:
    """Return the sizes of a full measurement as they are on a GPU: more recipes, bigger batches and products.

    The batch is the recipes' 64 a GPU of 80 GB, the next lower power of two where memory is less.
    """
    if sizes != FULL or not torch.cuda.is_available():
        return sizes
    share = torch.cuda.get_device_properties(0).total_memory / 75e9
    batch = 64 if share >= 1 else max(1, 2 ** math.floor(math.log2(64 * share)))
    return dataclasses.replace(sizes, step_recipes=GPU_RECIPES, products=GPU_PRODUCTS, step_batch=batch)


def step_of(bench: Workbench, recipe: str, *, checkpointing: bool | None = None) -> dict[str, Any]:
    """Return the measurement of a recipe's step, made once. checkpointing None: as the recipe says, with a profile."""
    as_it_is = bench.cache.get(("step", recipe, None))
    if as_it_is is not None and as_it_is["checkpointing"] == checkpointing:
        return as_it_is
    key = ("step", recipe, checkpointing)
    if key not in bench.cache:
        said = "" if checkpointing is None else f", {'with' if checkpointing else 'without'} activation checkpointing"
        bench.say(f"step: {recipe}{said}")
        sizes = for_this_device(bench.sizes)
        switch = [] if checkpointing is None else [f"{CHECKPOINTING}={str(checkpointing).lower()}"]
        bench.cache[key] = in_fresh_process(
            measure_step,
            threads=bench.threads,
            recipe=recipe,
            store=str(bench.store_path),
            batch=sizes.step_batch,
            rounds=sizes.step_rounds if checkpointing is None else 1,
            products=list(sizes.products),
            overrides=[*sizes.step_overrides, *switch],
            profile=checkpointing is None,
        )
    return bench.cache[key]


def memory_figures(bench: Workbench) -> list[Figure]:
    """Return the peak memory of a step without and with activation checkpointing, each from a process of its own."""
    recipe = bench.sizes.step_memory_recipe
    figures = []
    for checkpointing in (False, True):
        found = step_of(bench, recipe, checkpointing=checkpointing)
        name = "checkpointed" if checkpointing else "kept"
        says = f"{_short(recipe)}: peak memory of a step, {'with' if checkpointing else 'without'} checkpointing"
        parts = {key: found[key] for key in ("batch", "before_first_step_mb", "step_s", "dtype", "engine")}
        floor, said = found["before_first_step_mb"], "weights, teacher and libraries before the first step"
        figures.append(Figure(f"memory/step/{name}", says, found["peak_memory_mb"], "MB", floor, said, details=parts))
    return figures


def _figures_of(found: dict[str, Any], *, judged: bool) -> list[Figure]:
    short = _short(found["recipe"])
    best = f"the best square {found['dtype']} product, {found['threads']} threads, between the steps"
    note = found["profile"]["gap"] + f". Batch {found['batch']}, {found['engine']} engine."
    figures = [
        Figure(
            f"step/{short}/share",
            f"{short}: share of the best product",
            found["share"],
            "",
            1.0,
            best,
            note,
            found,
            judged,
        ),
        Figure(
            f"step/{short}/flops",
            f"{short}: whole step",
            found["tflop_per_second"],
            "TFLOP/s",
            found["best_product_tflop_per_second"],
            best,
        ),
        Figure(f"step/{short}/rate", f"{short}: samples a second", found["volumes_per_second"], "volumes/s"),
        Figure(f"step/{short}/data_wait", f"{short}: share of the step spent on views", found["data_wait"], ""),
    ]
    if found["mfu_of_data_sheet"] is not None:
        says = f"{short}: MFU of the data sheet's bf16"
        figures.append(Figure(f"step/{short}/mfu", says, found["mfu_of_data_sheet"], "", 1.0, "the GPU's data sheet"))
    return figures


def _short(recipe: str) -> str:
    return recipe.rpartition("/")[2].removesuffix(".yaml")

"""Fine-tuning steps beside pretraining's: the same encoder, its share of the best square product, and what is lost."""

import importlib.util
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from fmct.bench.figures import Figure
from fmct.bench.fresh import in_fresh_process
from fmct.bench.machine import nominal_peak
from fmct.bench.profile import profiled
from fmct.bench.step import for_this_device, step_of
from fmct.bench.stepping import PHASES, between_products, one_step, rates
from fmct.bench.workbench import Workbench, recipe_config
from fmct.heap import tune_memory

RECIPE = "pretrain/vit_small"
VALUES = {"learning_rate": 1e-4, "weight_decay": 0.05}


def bench_finetune(bench: Workbench) -> list[Figure]:
    """Return the share of the best product that a fine-tuning step reaches, and its ratio to pretraining's step.

    Both are of one run and one encoder. Pretraining's wait for views is taken out of its time, since the fine-tuning
    step has its windows ready; its heads, teacher and average stay in.
    """
    pretraining = step_of(bench, RECIPE)
    bench.say(f"finetune: {RECIPE}, classification")
    sizes = for_this_device(bench.sizes)
    found = in_fresh_process(
        measure_finetuning,
        threads=bench.threads,
        recipe=RECIPE,
        batch=2 * sizes.step_batch,  # as many global windows as pretraining has in a step
        rounds=sizes.step_rounds,
        products=list(sizes.products),
        overrides=list(sizes.step_overrides),
    )
    busy = pretraining["share"] / (1 - pretraining["data_wait"])
    judged, short = bench.sizes.comparable, RECIPE.rpartition("/")[2]
    best = f"the best square {found['dtype']} product, {found['threads']} threads, between the steps"
    note = f"{found['profile']['gap']}. Batch {found['batch']}, {found['engine']} engine, no data."
    details = {**found, "pretraining_share": pretraining["share"], "pretraining_data_wait": pretraining["data_wait"]}
    ratio, floor = found["share"] / busy, "pretraining's step of the same run, its wait for views taken out"
    return [
        Figure(f"finetune/{short}/share", f"{short}, classification: share of the best product", found["share"], "",
               1.0, best, note, details),
        Figure(f"finetune/{short}/ratio", f"{short}, classification: its share to pretraining's", ratio, "×",
               1.0, floor, pretraining["profile"]["gap"] + " (pretraining)", judged=judged),
        Figure(f"finetune/{short}/rate", f"{short}, classification: windows a second", found["volumes_per_second"],
               "volumes/s"),
    ]  # fmt: skip


def measure_finetuning(
    *, recipe: str, batch: int, rounds: int, products: Sequence[int], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Return seconds, rates, shares, phases and a profile of a step of full fine-tuning: forward, backward, update.

    The network is a linear classifier on the recipe's encoder with windows of its global views' size, random weights
    and values, one label a window; FLOPs are three times the encoder's forward (fmct.models.flops.finetune_flops).
    """
    from fmct.models.classifier import Classifier
    from fmct.models.encoder import build_encoder
    from fmct.models.flops import encoder_flops, finetune_flops
    from fmct.publish.export import preprocessing_of
    from fmct.tasks.classification import Classification
    from fmct.train.engines import build_engine
    from fmct.train.optim import OptimConfig

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        tune_memory()  # as the verbs do
    kind = [] if importlib.util.find_spec("deepspeed") else ["engine.kind=torch"]
    _, config = recipe_config(recipe, ["store=unused", "engine.accumulate=1", *kind, *overrides])
    preprocessing = preprocessing_of(config.views)
    size, channels = preprocessing.input.size_voxels, preprocessing.channels
    torch.manual_seed(0)
    encoder = build_encoder(config.encoder, channels, preprocessing.input.spacing_mm or (1.0, 1.0, 1.0))
    network = Classifier(encoder, outputs=1)
    optim = OptimConfig(layer_decay=0.75, encoder_multiplier=0.1, last_layer="", clip=1.0)
    engine = build_engine(Classification(network), config=config.engine, optim=optim, device=device)
    batches = itertools.repeat(_windows(batch, channels, size, preprocessing.input.spacing_mm, device))
    step = partial(one_step, engine, batches, VALUES, device)
    for _ in range(1 if device.type == "cpu" else 3):
        step(synchronise=False)
    timed, best = between_products(step, rounds=rounds, products=products, dtype=engine.dtype, device=device)
    phases = step(synchronise=True)
    flops = batch * finetune_flops(encoder_flops(config.encoder, size, in_channels=channels), 0)
    result = {
        "recipe": recipe,
        "batch": batch,
        "window": list(size),
        "engine": config.engine.kind,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **rates(timed, best, batch, flops, nominal_peak(device)),
        "phases_share": {name: phases[name] / phases["whole"] for name in PHASES},
        "profile": profiled(partial(step, synchronise=True), device, phases["whole"], flops, max(best)),
    }
    engine.close()
    return result


def _windows(count: int, channels: int, size: Sequence[int], spacing_mm: Any, device: torch.device) -> Any:
    """Return a batch of `count` windows of noise, every second one positive."""
    from fmct.data.labelled import LabelledBatch

    labels = (torch.arange(count, device=device) % 2).float()[:, None]
    maps, nothing = torch.zeros((count, *size), device=device), torch.zeros(count, dtype=torch.bool, device=device)
    return LabelledBatch(
        volumes=torch.randn((count, channels, *size), device=device),
        spacing=torch.tensor([list(spacing_mm or (1.0, 1.0, 1.0))] * count, device=device),
        labels=labels,
        patient_labels=labels,
        mask=maps,
        valid=maps + 1,
        has_mask=nothing,
        paired=None,
        has_pair=nothing,
        pair_weight=torch.zeros(count, device=device),
        bags=torch.arange(count, device=device),
        draws=torch.arange(count),
        entries=[f"window-{number}" for number in range(count)],
        kinds=["uniform"] * count,
    )

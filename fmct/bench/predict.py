"""Prediction on a whole chest: reading, windows over the body, masks back on the scan's own grid, beside its FLOPs."""

import importlib.util
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fmct.bench.figures import Figure
from fmct.bench.fresh import in_fresh_process
from fmct.bench.step import for_this_device, step_of
from fmct.bench.workbench import Workbench, recipe_config, write_nifti
from fmct.heap import tune_memory

RECIPE = "pretrain/vit_small"
CLEAR = 0.999  # what counts as mask: random weights outline half the body otherwise


def bench_predict(bench: Workbench) -> list[Figure]:
    """Return the seconds of predicting a chest from file to masks with a ViT-S segmenter, and their ratio to its FLOPs
    at the rate of a training step of that encoder; nothing where MONAI is not installed.
    """
    if importlib.util.find_spec("monai") is None:
        bench.say("predict: left out, MONAI is not installed (fmct[tasks])")
        return []
    step = step_of(bench, RECIPE)
    bench.say("predict: a whole chest")
    file = bench.folder / "predict-chest.nii"
    write_nifti(file, bench.volume("chest"))
    found = in_fresh_process(
        measure_prediction,
        threads=bench.threads,
        recipe=RECIPE,
        file=str(file),
        overrides=list(for_this_device(bench.sizes).step_overrides),
        keep_memory=True,
    )
    floor = found["tflop"] / step["tflop_per_second"]
    how = (
        f"Patch {found['patch']}, windows of {found['window']} voxels at {found['spacing_mm']} mm, overlap "
        f"{found['overlap']:g}, windows under {found['skip_air']:g} foreground left out: {found['looked_at']} of "
        f"{found['windows']} looked at, {found['tflop']:.3g} TFLOP, {found['dtype']}."
    )
    details = {**found, "scan": bench.describe("chest"), "step_tflop_per_second": step["tflop_per_second"]}
    floor_is = "its FLOPs at the rate of a training step of the same encoder"
    judged = bench.sizes.comparable
    return [
        Figure("predict/chest", "a chest from file to masks", found["whole_s"], "s", floor, floor_is, how, details),
        Figure("predict/chest/network", "its windows alone", found["network_s"], "s", floor, floor_is),
        Figure(
            "predict/chest/ratio",
            "a chest from file to masks, to its FLOPs",
            found["whole_s"] / floor,
            "×",
            1.0,
            floor_is,
            judged=judged,
        ),
    ]


def measure_prediction(
    *, recipe: str, file: str, overrides: Sequence[str] = (), keep_memory: bool = False
) -> dict[str, Any]:
    """Return seconds (whole, reading, windows), windows and TFLOP of predicting one scan, after a warm-up.

    The network is a segmenter with the default decoder on the recipe's encoder, random weights, behind the
    preprocessing that exporting the recipe's run would write. keep_memory: as the verb does, in a process of its own.
    """
    import monai.inferers.inferer  # noqa: F401  # a process imports it once, with the first of its scans

    from fmct.inference.predict_series import Wanted, predict_one
    from fmct.inference.series_source import Naming, read_policy, series_of
    from fmct.inference.sliding_window import batch_size, predict_series
    from fmct.models.flops import forward_flops
    from fmct.precision import compute_dtype
    from fmct.store.patients import PatientNames

    if keep_memory:
        tune_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(recipe, overrides, device)
    policy = read_policy(model.preprocessing.modality, ["min_slices=8"])
    series = next(series_of(file, model.preprocessing, policy=policy, naming=Naming(PatientNames())))
    wanted = Wanted()
    spec = model.preprocessing.input
    window = torch.zeros(1, model.record.in_channels, *spec.size_voxels)
    model(window.expand(batch_size(model), -1, -1, -1, -1))  # warms up
    with tempfile.TemporaryDirectory() as folder:
        clock = [_now(device)]
        result = predict_one(model, series, Path(folder), wanted)
        clock.append(_now(device))
        opened = series.open()
        clock.append(_now(device))
        predict_series(model, opened.scan, overlap=wanted.overlap)
        clock.append(_now(device))
    seconds = {name: clock[i + 1] - clock[i] for i, name in enumerate(("whole_s", "read_s", "network_s"))}
    flops = forward_flops(model.module, window, spacing=torch.empty(1, 3))
    return {
        **seconds,
        "windows": result.windows[0],
        "looked_at": result.windows[1],
        "tflop": result.windows[1] * flops / 1e12,
        "window": list(spec.size_voxels),
        "spacing_mm": list(spec.spacing_mm or ()),
        "overlap": wanted.overlap,
        "skip_air": spec.skip_air,
        "patch": list(model.module.get_submodule("encoder").patch_size),  # type: ignore[arg-type]
        "dtype": str(compute_dtype(wanted.precision, device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _model(recipe: str, overrides: Sequence[str], device: torch.device) -> Any:
    from fmct.models.encoder import build_encoder
    from fmct.models.segmenter import Segmenter
    from fmct.publish.decision import Decision
    from fmct.publish.export import preprocessing_of
    from fmct.publish.load_model import PublishedModel
    from fmct.publish.task_record import TaskRecord

    _, config = recipe_config(recipe, ["store=unused", *overrides])
    preprocessing = preprocessing_of(config.views)
    spacing = preprocessing.input.spacing_mm
    assert spacing is not None, "the recipe's views are in millimetres"
    torch.manual_seed(0)
    encoder = build_encoder(config.encoder, preprocessing.channels, spacing)
    module = Segmenter(encoder, taps=min(4, encoder.depth)).to(device)
    record = TaskRecord("segmentation", ("lesion",), {}, preprocessing, preprocessing.channels, spacing)
    decision = Decision(mask_probability=CLEAR, component_probability=0.5)
    return PublishedModel(module, record, decision=decision).channels_last()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""The contrast gate on a chest: from voxels in memory to a call, beside its network alone; on a GPU, a rate."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from fmct.bench.figures import Figure
from fmct.bench.fresh import in_fresh_process
from fmct.bench.step import for_this_device
from fmct.bench.workbench import Workbench, recipe_config, write_nifti

RECIPE = "pretrain/vit_small"
ROUNDS, GPU_ROUNDS = 3, 60


def bench_contrast(bench: Workbench) -> list[Figure]:
    """Return the seconds of a call with a ViT-S on a chest that was read already, and of what it is made of."""
    bench.say("contrast: the gate on a chest")
    file = bench.folder / "contrast-chest.nii"
    write_nifti(file, bench.volume("chest"))
    found = in_fresh_process(
        measure_gate,
        threads=bench.threads,
        recipe=RECIPE,
        file=str(file),
        overrides=list(for_this_device(bench.sizes).step_overrides),
        rounds=ROUNDS if bench.sizes.comparable else 1,
    )
    how = (
        f"{found['tiles']} tiles of {found['window']} voxels at {found['spacing_mm']} mm, half of each shared; "
        f"{found['dtype']}, {found['threads']} threads; {bench.describe('chest')}. The HU baseline is not part of it."
    )
    judged, floor_is = bench.sizes.comparable, "its network alone"
    figures = [
        Figure(
            "contrast/series", "a contrast call on a chest, after reading", found["call_s"], "s", found["network_s"],
            floor_is, how, found, judged=judged and not found["gpu"],
        ),
        Figure("contrast/baseline", "the HU baseline's features of it", found["features_s"], "s"),
    ]  # fmt: skip
    if found["gpu"]:
        rate = 1 / found["scan_s"]
        note = "From the pyramid level that a store hands out."
        figures.append(
            Figure("contrast/rate", "contrast calls", rate, "series/s", 1 / found["network_s"], floor_is, note,
                   judged=judged)
        )  # fmt: skip
    return figures


def measure_gate(*, recipe: str, file: str, overrides: Sequence[str] = (), rounds: int = ROUNDS) -> dict[str, Any]:
    """Return median seconds of a call on a volume in memory, on its level, of the network on the tiles, of features.

    The network is a ContrastNetwork on the recipe's encoder, random weights, behind the preprocessing that exporting
    the recipe's run would write, with tiles along the body. On a GPU, of GPU_ROUNDS calls.
    """
    from fmct.contrast.gate import ContrastGate
    from fmct.contrast.hu_features import scan_features
    from fmct.io import Candidate, ReadPolicy, discover, read_candidate
    from fmct.precision import compute_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gate = ContrastGate(contrast_model(recipe, overrides, device))
    candidate = next(item for item in discover([file]) if isinstance(item, Candidate))
    volume = read_candidate(candidate, ReadPolicy(min_slices=8))
    preprocessing = gate.model.preprocessing
    scan = preprocessing.scan(volume)
    tiles = preprocessing.tiles(volume)
    x, spacing = tiles.tensor.to(device), tiles.spacing_mm.to(device)
    dtype = compute_dtype("auto", device)

    def network() -> None:
        """Run the encoder and the head on all tiles at once."""
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            gate.model.module(x, spacing)

    gate.predict(volume)  # warms up
    repeats = GPU_ROUNDS if device.type == "cuda" and rounds > 1 else rounds
    return {
        "call_s": _seconds(lambda: gate.predict(volume), rounds, device),
        "scan_s": _seconds(lambda: gate.of_scan(scan), repeats, device),
        "network_s": _seconds(network, repeats, device),
        "features_s": _seconds(lambda: scan_features(scan), rounds, device),
        "tiles": len(x),
        "window": list(preprocessing.input.size_voxels),
        "spacing_mm": list(preprocessing.input.spacing_mm or ()),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "gpu": device.type == "cuda",
    }


def contrast_model(recipe: str, overrides: Sequence[str], device: torch.device) -> Any:
    """Return a contrast model on a recipe's encoder, with random weights and an operating point of one half."""
    from fmct.models.contrast import ContrastNetwork, targets_of
    from fmct.models.encoder import build_encoder
    from fmct.publish.decision import Decision
    from fmct.publish.export import preprocessing_of
    from fmct.publish.load_model import PublishedModel
    from fmct.publish.task_record import TaskRecord

    _, config = recipe_config(recipe, ["store=unused", *overrides])
    preprocessing = preprocessing_of(config.views).axial()
    spacing = preprocessing.input.spacing_mm
    assert spacing is not None, "the recipe's views are in millimetres"
    torch.manual_seed(0)
    module = ContrastNetwork(build_encoder(config.encoder, preprocessing.channels, spacing), seconds=True).to(device)
    record = TaskRecord("contrast", targets_of(True), {}, preprocessing, preprocessing.channels, spacing, pool="bag")
    return PublishedModel(module, record, decision=Decision(thresholds={"contrast": 0.5}))


def _seconds(function: Callable[[], object], rounds: int, device: torch.device) -> float:
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return median(found)

"""The chest's prediction beside its FLOPs: how the figures follow from what was measured, and once for real."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmct.bench import predict
from fmct.bench.predict import RECIPE, bench_predict, measure_prediction
from fmct.bench.workbench import QUICK, Workbench, recipe_config, write_nifti
from fmct.models.flops import encoder_flops
from fmct.phantoms import body as phantom

FOUND = {
    **{"whole_s": 3.0, "read_s": 0.5, "network_s": 2.0, "windows": 75, "looked_at": 40, "tflop": 0.5},
    **{"window": [96, 96, 96], "spacing_mm": [1.5, 1.5, 1.5], "overlap": 0.5, "skip_air": 0.05},
    **{"patch": [16, 16, 16], "dtype": "bfloat16", "threads": 2},
}


def test_the_ratio_is_seconds_over_flops_at_the_rate_of_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = Workbench(tmp_path, QUICK, say=lambda text: None)
    bench.cache["chest"] = phantom.body(0, (8, 16, 16), (8.0, 8.0, 8.0))
    bench.cache["step", RECIPE, None] = {"tflop_per_second": 0.25, "checkpointing": False}
    given: dict[str, Any] = {}

    def fresh(function: Any, **arguments: Any) -> dict[str, Any]:
        given.update(arguments)
        return FOUND

    monkeypatch.setattr(predict, "in_fresh_process", fresh)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    figures = {figure.name: figure for figure in bench_predict(bench)}
    assert figures["predict/chest"].floor == 2.0
    assert figures["predict/chest/ratio"].value == 1.5
    assert not figures["predict/chest/ratio"].judged
    assert "40 of 75 looked at" in figures["predict/chest"].note
    assert Path(given["file"]).is_file()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench_predict(bench) == []


def test_a_small_chest_is_measured(tmp_path: Path) -> None:
    """More windows, fewer looked at; the FLOPs are those of the windows that were."""
    file = tmp_path / "chest.nii"
    body = phantom.body(0, (16, 20, 20), (6.0, 6.0, 6.0))
    around = np.pad(body.voxels, ((0, 0), (14, 14), (14, 14)), constant_values=-1000)
    write_nifti(file, replace(body, voxels=around))
    views = [
        f"views.global_views.{key}" for key in ("size=[32,32,32]", "in_plane_mm=[96,96]", "through_plane_mm=[96,96]")
    ]
    small = [*QUICK.step_overrides, *views]
    found = measure_prediction(recipe=RECIPE, file=str(file), overrides=small)
    assert found["window"] == [32, 32, 32]
    assert 0 < found["looked_at"] < found["windows"]
    assert found["whole_s"] > found["network_s"] * 0.2
    _, config = recipe_config(RECIPE, ["store=unused", *small])
    encoder = encoder_flops(config.encoder, (32, 32, 32), in_channels=config.views.channels)
    assert encoder < 1e12 * found["tflop"] / found["looked_at"] < 100 * encoder

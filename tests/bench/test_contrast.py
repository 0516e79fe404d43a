"""The gate's speed: how the figures follow from what was measured, and once for real on a small encoder."""

from pathlib import Path
from typing import Any

import pytest

from fmct.bench import contrast
from fmct.bench.contrast import RECIPE, bench_contrast, measure_gate
from fmct.bench.workbench import FULL, QUICK, Workbench, write_nifti
from tests.contrast import bright_vessels

FOUND: dict[str, Any] = {
    **{"call_s": 1.5, "scan_s": 0.025, "network_s": 0.01, "features_s": 0.3, "tiles": 5, "window": [96, 96, 96]},
    **{"spacing_mm": [2.0, 2.0, 2.0], "dtype": "float32", "threads": 2, "gpu": False},
}


@pytest.mark.parametrize("gpu", [False, True])
def test_a_gpu_is_judged_by_its_rate_and_cores_by_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: bool
) -> None:
    bench = Workbench(tmp_path, FULL, say=lambda text: None)
    bench.cache["chest"] = bright_vessels.volume(0)
    monkeypatch.setattr(contrast, "in_fresh_process", lambda function, **arguments: FOUND | {"gpu": gpu})
    told = {figure.name: figure.to_dict() for figure in bench_contrast(bench)}
    assert told["contrast/series"]["met"] is (None if gpu else True)
    assert ("contrast/rate" in told) == gpu
    if gpu:
        assert told["contrast/rate"]["value"] == pytest.approx(40.0)
        assert told["contrast/rate"]["met"] is True


def test_a_call_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "body.nii"
    write_nifti(file, bright_vessels.volume(1))
    overrides = [*QUICK.step_overrides, "encoder.depth=1", "views.global_views.size=[32,32,32]"]
    found = measure_gate(recipe=RECIPE, file=str(file), overrides=overrides, rounds=1)
    assert found["call_s"] > found["network_s"] * 0.1 > 0
    assert found["tiles"] >= 2

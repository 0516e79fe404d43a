"""The grid of distillation, two updates a cell: cells share a detector, come back, and are compared by patient."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import finetune.microbleed_phantom as recipe
from fmct.config import build, read_tree
from fmct.lesions.phase import weights_of
from fmct.train.session import Options
from tests.lesions.small_brains import config as detector


def test_cells_are_kept_and_arms_share_their_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = read_tree(["configs/finetune/microbleed_phantom.yaml"], [f"output={tmp_path}", "seeds=[0]"])
    config = build(recipe.Config, tree)
    config = dataclasses.replace(
        config,
        phantoms=dataclasses.replace(config.phantoms, train=2, test=2, shape=[26, 32, 26], spacing_mm=3.6),
        detector=dataclasses.replace(detector(tmp_path, steps=1), output=""),
        arms={name: config.arms[name] for name in ("kd_on", "kd_off")},
    )
    assert recipe.main(config, Options(), torch.device("cpu")) == 0
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text.startswith("# SYNTHETIC")
    assert "discrimination by the teacher" in text
    assert "Not yet: features − kd_on" in text
    runs = tmp_path / "runs"
    assert weights_of(runs / "seed0-kd_on" / "detector") == weights_of(runs / "seed0-kd_off" / "detector")
    assert weights_of(runs / "seed0-kd_on" / "student") != weights_of(runs / "seed0-kd_off" / "student")
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {row["first"] for row in results["contrasts"]["f1"]} == {"kd_on"}
    before = {path: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    capsys.readouterr()
    assert recipe.main(config, Options(), torch.device("cpu")) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "cells").iterdir()} == before
    assert "starting" not in capsys.readouterr().out

"""Minutes of training on SYNTHETIC brains find nearly all microbleeds: nine of ten at two false positives or fewer."""

import json
from pathlib import Path

import pytest
import torch

import finetune.microbleed_phantom as recipe
from fmct.config import build, read_tree
from fmct.train.session import Options

CONFIGS = [f"configs/finetune/microbleed_phantom{part}.yaml" for part in ("", "_1mm")]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_minutes_of_training_find_nine_of_ten_and_the_student_keeps_up(tmp_path: Path) -> None:
    words = [f"output={tmp_path}", "arms={kd_on: {temperature: 4.0, alpha: 0.4}}", "contrasts=[]"]
    assert recipe.main(build(recipe.Config, read_tree(CONFIGS, words)), Options(), torch.device("cpu")) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    stages = {stage["stage"]: stage for stage in results["arms"]["kd_on"]}
    found = {name: stage["found"] / stage["lesions"] for name, stage in stages.items()}
    false = {name: stage["false"] / stage["subjects"] for name, stage in stages.items()}
    assert found["detection"] >= 0.9, found
    assert found["discrimination"] >= 0.9, found
    assert false["discrimination"] <= 2, false
    assert abs(found["discrimination by the teacher"] - found["discrimination"]) <= 0.05, found

"""Reference B.13, item 28: minutes of training find nine of ten microbleeds at two false positives or fewer."""

import json
from pathlib import Path

import pytest
import torch

import finetune.microbleed_phantom as recipe
from fmct.config import build, read_tree
from fmct.train.session import Options

CHANGES = [
    "seeds=[0]", "contrasts=[]", "arms={kd_on: {temperature: 4.0, alpha: 0.4}}",
    "phantoms={train: 16, test: 16, spacing_mm: 1.0, shape: [96, 120, 96], seed: 4}",
    "detector.propose.training.steps=800", "detector.propose.threshold=0.02",  # the discriminator is there to be strict
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_minutes_of_training_find_microbleeds_and_the_student_follows_its_teacher(tmp_path: Path) -> None:
    tree = read_tree(["configs/finetune/microbleed_phantom.yaml"], [f"output={tmp_path}", *CHANGES])
    assert recipe.main(build(recipe.Config, tree), Options(), torch.device("cpu")) == 0
    arms = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["arms"]
    stages = {stage["stage"]: stage for stage in arms["kd_on"]}
    teacher, student = stages["discrimination by the teacher"], stages["discrimination"]
    assert student["found"] / student["lesions"] >= 0.9
    assert student["false"] / student["subjects"] <= 2
    assert (teacher["found"] - student["found"]) / teacher["lesions"] <= 0.05

"""From a run folder of fine-tuning to a model folder: the network that predicts, without what only training needs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmct.cli import main
from fmct.errors import ArtefactError, CheckpointError
from fmct.models.dual_phase import DualPhase
from fmct.publish.decision import Decision, write_decision
from fmct.publish.export_model import export_model
from fmct.publish.load_model import load_model
from fmct.publish.task_record import read_task, write_task
from fmct.train import checkpoint
from fmct.train.run import open_run
from tests.publish.tiny_models import SPACING, build_encoder, drawn, record, register


@dataclass(frozen=True)
class RunConfig:
    """What a fine-tuning configuration says for the card."""

    recipe: str = "finetune.nct_pe"
    output: str = ""
    seed: int = 3
    steps: int = 20
    data: dict[str, Any] = field(default_factory=dict)


class Task(nn.Module):
    """A task around a dual-phase network."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network = DualPhase(build_encoder(1, SPACING), taps=2, width=8, stem_channels=4, hidden=16)
        drawn(self.network, seed=seed)

    def run_state(self) -> dict[str, Any]:
        return {}


class Engine:
    """A task as the checkpoint sees it."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def moments(self) -> dict[str, torch.Tensor]:
        return {}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run folder with checkpoints of steps 10 and 20."""
    folder = tmp_path / "run"
    folder.mkdir()
    open_run(folder, RunConfig(), corpus={})
    write_task(folder, record("phase", pretrained={"fingerprint": "ef" * 32}))
    for step in (10, 20):
        state = {"step": step, "draw": 4 * step, "updates": step, "batch_size": 4, "skipped": 0}
        checkpoint.save(folder / "checkpoints", Engine(Task(step)), state)  # type: ignore[arg-type]
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 20, "loss": 0.5}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield folder


def test_the_newest_checkpoints_first_pathway_is_exported_with_its_decision(run: Path, tmp_path: Path) -> None:
    """N1: to the bit what the trained network says of the non-contrast series. N2: no parameter of the other phase."""
    write_decision(run, Decision(thresholds={"lesion": 0.4}, validation={"patients": 9}))
    model = load_model(export_model(run, tmp_path / "model"), device="cpu")
    x, spacing = torch.randn(1, 1, 16, 16, 16), torch.tensor([SPACING])
    network = Task(20).network.eval()
    with torch.no_grad():
        wanted = network(x, torch.randn(1, 1, 16, 16, 16), spacing=spacing).nct
    found = model(x)
    assert found.segmentation is not None
    assert torch.equal(found.segmentation, wanted.segmentation)
    assert not [name for name in model.module.state_dict() if "ctpa" in name]
    assert model.decision == Decision(thresholds={"lesion": 0.4}, validation={"patients": 9})
    assert (model.facts["step"], model.facts["recipe"], model.facts["seed"]) == (20, "finetune.nct_pe", 3)
    assert model.record.pretrained == {"fingerprint": "ef" * 32}
    assert model.selftest().bit_equal


def test_a_step_can_be_named_and_a_run_without_a_decision_exports_none(run: Path, tmp_path: Path) -> None:
    model = load_model(export_model(run, tmp_path / "model", step=10), device="cpu")
    assert (model.facts["step"], model.decision) == (10, None)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15\. There are: 10, 20"):
        export_model(run, tmp_path / "other", step=15)


def test_the_verb_tells_both_kinds_of_runs_apart(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert "targets lesion, no operating point: probabilities only; self-test passed" in said
    assert "Next: fmct predict" in said
    assert main(["export", str(run), str(tmp_path / "other"), "--student"]) == 2
    assert "its heads are part of the model" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_task_record_survives_the_run_folder(run: Path, tmp_path: Path) -> None:
    assert read_task(run) == record("phase", pretrained={"fingerprint": "ef" * 32})
    with pytest.raises(ArtefactError, match=r"holds no task\.json"):
        export_model(tmp_path, tmp_path / "model")

"""The whole grid on five small made-up patients: trained, scored, controlled, and gone on with."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fmct.artefacts import read_json
from fmct.config import build, import_recipe, read_tree
from fmct.experiment.scoring import trained_network
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish.folder import write_encoder
from fmct.train.session import Options
from fmct.windows import Window
from tests.publish.tiny import CONFIG, FACTS, tiny_weights

PREPROCESSING = Preprocessing(
    (Window(-160, 240, "soft tissue"), Window(-1000, 1000, "wide")),
    InputSpec(size_voxels=(16, 16, 16), spacing_mm=(6.0, 6.0, 6.0)),
)
TINY = [
    "steps=1", "batch_size=2", "workers=0", "windows.size=[16,16,16]", "run.save_every=1", "run.progress_s=1e9",
    "network={share: encoder, taps: 2, width: 16, stem_channels: 8, hidden: 16, projector_dim: 8}",
]  # fmt: skip
ALONE = ["objective.weights.ctpa=0", "objective.weights.alignment=0", "objective.weights.discrepancy=0"]


def write_patients(folder: Path) -> None:
    """Write five crops with a ball of tumour in the middle of muscle, which the coarser PET shows hot."""
    for number in range(5):
        random = np.random.default_rng(number)
        patient = folder / f"STS_{number:03d}"
        patient.mkdir(parents=True)
        for name, shape, step in (("ct", (24, 25, 26), 6.0), ("pet_suv", (14, 15, 16), 10.0)):
            world = np.stack(np.meshgrid(*[np.arange(n) * step for n in shape], indexing="ij"), -1)
            ball = np.linalg.norm(world - 72.0, axis=-1) < 30
            body = np.linalg.norm(world - 72.0, axis=-1) < 68
            if name == "ct":
                values = np.where(ball, 20, np.where(body, 60, -1000)) + random.normal(0, 10, shape)
                values[0, 0, 0] = -1024
                save(patient / "ct_gtv.nii.gz", ball.astype(np.uint8), step)
                values = values.astype(np.int16)
            else:
                values = (np.where(ball, 8.0, 1.0) * random.uniform(0.9, 1.1, shape)).astype(np.float32)
            save(patient / f"{name}.nii.gz", values, step)


def save(path: Path, values: np.ndarray, step: float) -> None:
    """Write a NIfTI whose axes are the world's."""
    nib.save(nib.Nifti1Image(values, np.diag([step, step, step, 1.0])), path)  # type: ignore[attr-defined]


def test_a_grid_is_trained_scored_and_gone_on_with(tmp_path, monkeypatch, capsys):
    write_patients(tmp_path / "data")
    encoder = write_encoder(tmp_path / "encoder", tiny_weights(), CONFIG, PREPROCESSING, facts=FACTS)
    asked: list[tuple[str, ...]] = []

    def stand_in(patients, folder, **_) -> Path:
        asked.append(tuple(patients))
        return encoder

    monkeypatch.setattr("fmct.experiment.pet_ct_runs.encoder_without", stand_in)
    monkeypatch.setattr("fmct.experiment.pet_ct_runs.preprocessing_here", lambda _: PREPROCESSING)
    arms = {
        "alone": {"set": [*TINY, *ALONE, "from_scratch=true"], "sizes": [0, 2]},
        "dual": {"set": [*TINY, "allow_small_cells=true"], "paired": True},
    }
    recipe = import_recipe("finetune.pet_ct")
    tree = read_tree([], [f"output={tmp_path / 'out'}", f"data={tmp_path / 'data'}", "folds=[0,1]", "seeds=[0]"])
    config = build(recipe.Config, {**tree, "arms": arms, "contrasts": ["dual - alone"]})
    assert recipe.main(config, Options(), torch.device("cpu")) == 0
    said = capsys.readouterr().out
    assert "6 cells done, 0 left" in said
    assert {("STS_000",), ("STS_001",)} == set(asked)
    cell = read_json(tmp_path / "out" / "cells" / "dual-n0-fold1-seed0.json", "fmct-experiment-cell", "1.0")
    assert {name: list(values) for name, values in cell["scores"].items()} == {
        name: ["STS_001"] for name in ("windows", "paired", "whole")
    }
    assert (cell["updates"], cell["windows"], cell["training_patients"]) == (1, 2, 4)
    assert_gflop_are_those_of_the_training_step(tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert all(row in table for row in ("| alone |", "| alone, n = 2 |", "| dual, paired scan given |", "ellipsoid"))
    again = recipe.main(config, Options(), torch.device("cpu"))
    assert again == 0
    assert "cells to do" not in capsys.readouterr().out


def assert_gflop_are_those_of_the_training_step(out: Path) -> None:
    """An arm whose objective reads the PET runs encoder, decoder, classifier and projectors on both scans."""
    ct, pet = torch.randn(1, 2, 16, 16, 16), torch.randn(1, 2, 16, 16, 16)
    for arm, given in (("alone", [ct]), ("dual", [ct, pet])):  # a window of the PET has two channels too
        cell = read_json(out / "cells" / f"{arm}-n0-fold0-seed0.json", "fmct-experiment-cell", "1.0")
        _, network = trained_network(out / "runs" / f"{arm}-n0-fold0-seed0")
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # a fused one is not counted
            network(*given, spacing=torch.full((1, 3), 6.0))
        assert cell["gflop_per_window"] * 1e9 == pytest.approx(3 * counter.get_total_flops())

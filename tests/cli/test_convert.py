from pathlib import Path

import numpy as np
import pytest
import torch

from fmct.cli import main
from fmct.publish.adapters import open_encoder
from fmct.publish.load import load_encoder
from tests.models.published_layouts import fmhct
from tests.publish.tiny import body


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model_weights.pth"
    torch.save({f"module.backbone.{n}": v for n, v in fmhct().items()}, path)
    return path


def test_published_weights_become_an_encoder_folder(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encoder"
    words = ["convert", "fmhct", str(weights), str(folder)]
    assert main([*words, "--license", "cc-by-nc-4.0", "window_order=resize-window"]) == 0
    assert "fmhct, 48 features" in capsys.readouterr().out
    assert "license: cc-by-nc-4.0" in (folder / "README.md").read_text()
    encoder = load_encoder(folder, device="cpu")
    direct = open_encoder(weights, layout="fmhct", device="cpu", window_order="resize-window")
    np.testing.assert_array_equal(encoder.embed(body()), direct.embed(body()))
    assert main(words) == 2
    assert "encoder" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("layout", "more", "told"),
    [
        ("voxelfm", [], "another project's checkpoint"),
        ("fmhct", ["rule=teacher"], "no option rule"),
        ("fmhct", ["teacher"], "expected options as key=value"),
        ("merlin", [], "expected one of fmhct, voxelfm, 3dino"),
    ],
)
def test_what_does_not_fit_is_explained(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, more: list[str], told: str
) -> None:
    assert main(["convert", layout, str(weights), str(tmp_path / "encoder"), *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "encoder").exists()

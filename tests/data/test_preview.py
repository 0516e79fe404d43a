from pathlib import Path

import matplotlib.image
import pytest

from fmct.cli import main
from fmct.phantoms import body as phantom
from tests.data.scans import make_store

CONFIG = """
recipe: pretrain.dino
views:
  global_views: {count: 2, size: [32, 32, 32], in_plane_mm: [80, 200], through_plane_mm: [80, 200]}
  local_views: {count: 3, size: [16, 16, 16], in_plane_mm: [40, 80], through_plane_mm: [40, 80]}
encoder: {size: tiny, patch_size: [8, 8, 8]}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(
        tmp_path_factory.mktemp("preview"), [phantom.body(s, (30, 48, 48), (6.0, 7.0, 7.0)) for s in range(2)]
    )


def test_the_sheet_shows_views_and_masks(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    picture = tmp_path / "views.png"
    command = ["preview", str(tmp_path / "run.yaml"), f"store={store}", "draws=2", f"output={picture}"]
    assert main(command) == 0
    assert str(picture) in capsys.readouterr().out
    image = matplotlib.image.imread(picture)[..., :3]
    assert image.shape[1] > 1000
    assert image.std() > 0.1
    # The mask's tint and the frames' colours are in it.
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    assert ((red > 0.4) & (green < 0.6 * red) & (blue < 0.5 * red)).sum() > 500
    assert ((blue > 0.6) & (red < 0.2)).sum() > 200


def test_mistakes_end_with_a_sentence(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    run = str(tmp_path / "run.yaml")
    for command, text in (
        ([f"store={store}"], "expected a configuration"),
        ([run, f"store={store}", "draws=0"], "draws must be"),
        ([run, f"store={store}", "output=/nowhere/at/all.png"], "folder does not exist"),
        ([run], "no store named"),
        ([run, f"store={tmp_path}"], "not a store"),
    ):
        assert main(["preview", *command]) == 2
        assert text in capsys.readouterr().err

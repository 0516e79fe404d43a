import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fmct
from fmct.errors import ArtefactError, DataError
from fmct.preprocess import InputSpec
from fmct.publish import golden, layout
from fmct.publish.folder import write_encoder
from fmct.publish.load import PublishedEncoder, load_encoder
from tests.publish.tiny import CONFIG, PREPROCESSING, body, tiny_encoder, tiny_weights, write_nifti


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("publish") / "enc")


@pytest.fixture
def encoder(folder: Path) -> PublishedEncoder:
    return fmct.load_encoder(folder)


def rewrite(folder: Path, name: str, change: dict[str, object]) -> None:
    """Change keys of a JSON file of the folder, and its checksums with it."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    layout.write_sums(folder)


def test_features_are_those_of_the_model_that_was_exported(encoder: PublishedEncoder) -> None:
    from fmct.models.encoder import build_encoder

    model = build_encoder(CONFIG, 2).eval()
    model.load_state_dict(tiny_weights())
    x = encoder.preprocess(body())
    spacing = torch.full((len(x), 3), 12.0)
    with torch.no_grad():
        expected = model(x, spacing=spacing)
    found = encoder(x)
    assert torch.equal(found.cls, expected.cls)
    assert torch.equal(found.patches, expected.patches)
    assert torch.equal(encoder(x, spacing=spacing).cls, expected.cls)
    assert not torch.equal(encoder(x, spacing=2 * spacing).cls, expected.cls)
    assert not found.cls.requires_grad
    assert not encoder.model.training
    assert encoder.config == CONFIG
    assert encoder.facts["step"] == 30


def test_embedding_is_the_foreground_weighted_mean_over_tiles(encoder: PublishedEncoder, tmp_path: Path) -> None:
    volume = body()
    tiles = encoder.preprocessing.tiles(volume)
    assert len(tiles.tensor) > 2
    rows = []
    for tile in tiles.tensor:
        output = encoder(tile[None])
        rows.append(torch.cat([output.cls[0], output.patches[0].mean(0)]))
    weight = tiles.foreground / tiles.foreground.sum()
    expected = (torch.stack(rows) * weight[:, None]).sum(0)
    path = write_nifti(tmp_path / "scan.nii.gz", volume)
    for source in (volume, path, str(path)):
        vector = encoder.embed(source)
        assert vector.shape == (2 * encoder.num_features,)
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    whole = encoder.embed(volume, return_tiles=True)
    np.testing.assert_allclose(whole.tiles, torch.stack(rows), atol=1e-5)
    np.testing.assert_allclose(whole.start_mm, tiles.start_mm)
    assert whole.spacing_mm.tolist() == [12.0] * 3


def test_batching_changes_nothing(encoder: PublishedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encoder.embed(body(), return_tiles=True)
    monkeypatch.setattr("fmct.publish.load.TOKENS_PER_BATCH", 64)
    assert encoder.batch_size() == 1
    found = encoder.embed(body(), return_tiles=True)
    np.testing.assert_allclose(found.tiles, expected.tiles, atol=1e-5)
    np.testing.assert_array_equal(found.foreground, expected.foreground)


def test_an_encoder_that_resizes_needs_to_hear_the_spacing(tmp_path: Path) -> None:
    preprocessing = replace(PREPROCESSING, input=InputSpec("resize", (16, 16, 16), None, pool="mean"))
    folder = write_encoder(tmp_path / "enc", tiny_weights(), CONFIG, preprocessing)
    encoder = load_encoder(folder)
    encoder.selftest()
    x = encoder.preprocess(body())
    with pytest.raises(DataError, match="pass spacing="):
        encoder(x)
    spacing = encoder.preprocessing.tiles(body()).spacing_mm
    output = encoder(x, spacing=spacing)
    vector = encoder.embed(body())
    np.testing.assert_allclose(vector[:64], output.cls[0], atol=1e-6)


def test_selftest_is_bit_equal_here(encoder: PublishedEncoder) -> None:
    result = encoder.selftest()
    assert result.worst == 0.0
    assert result.bit_equal


@pytest.mark.parametrize("part", ["encoder", "preprocessing"])
def test_selftest_finds_a_deviation_above_the_tolerance_and_allows_one_below(tmp_path: Path, part: str) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    numbers = json.loads((folder / "golden.json").read_text())
    key = "cls" if part == "encoder" else "octants"
    largest = max(abs(value) for value in numbers[part][key])
    for share, fine in ((0.5e-4, True), (2e-4, False)):
        changed = json.loads(json.dumps(numbers[part]))
        changed[key][0] += share * largest
        changed["sha256"] = "0" * 64
        rewrite(folder, "golden.json", {part: changed})
        if fine:
            result = load_encoder(folder).selftest()
            assert 0 < result.worst < golden.TOLERANCE
            assert not result.bit_equal
        else:
            with pytest.raises(ArtefactError, match=rf"self-test failed: {part}\.{key} differs"):
                load_encoder(folder).selftest()


def test_selftest_sees_swapped_axes_and_rescaled_windows(encoder: PublishedEncoder) -> None:
    from fmct.publish.load import measure

    expected = measure(encoder.model, encoder.preprocessing)
    flipped = replace(encoder.preprocessing, orientation="SPR")
    shifted = replace(
        encoder.preprocessing,
        windows=(replace(encoder.preprocessing.windows[0], low=-161), encoder.preprocessing.windows[1]),
    )
    for other in (flipped, shifted):
        found = golden.differences(expected["preprocessing"], golden.preprocessing_numbers(other))
        assert max(found.values()) > golden.TOLERANCE
    x = golden.golden_input(2, golden.golden_size((4, 4, 4)))
    assert len({x.shape[axis] for axis in (2, 3, 4)}) == 3
    nonfinite = {**expected["encoder"], "cls": [float("nan")] * 64}
    assert max(golden.differences(expected["encoder"], nonfinite).values()) == float("inf")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "config.json",
            {"format": {"name": "fmct-encoder", "version": "2.0"}},
            "version 2.0 was written by another fmct",
        ),
        ("config.json", {"format": {"name": "other", "version": "1.0"}}, "expected a file of format 'fmct-encoder'"),
        ("config.json", {"encoder": {"size": "colossal"}}, "describes no encoder that this fmct can build"),
        ("config.json", {"encoder": {"sise": "tiny"}}, "unknown key sise"),
        ("config.json", {"in_channels": 3}, "takes 3 channels, and preprocess.json makes 2"),
        ("preprocess.json", {"windows": []}, "not a usable description of preprocessing"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, name: str, change: dict[str, object], message: str
) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    rewrite(folder, name, change)
    with pytest.raises(ArtefactError, match=message):
        load_encoder(folder)


def test_paths_that_are_no_encoder_are_explained(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no such folder, and not a hub id"):
        load_encoder(tmp_path / "absent")
    with pytest.raises(ArtefactError, match="holds no SHA256SUMS"):
        load_encoder(tmp_path)
    with pytest.raises(ArtefactError, match="is a file; expected the folder"):
        load_encoder(folder / "model.safetensors")
    with pytest.raises(ArtefactError, match="has no revision 'v1'"):
        load_encoder(folder, revision="v1")

"""Windows over a series: places and weights against a slow reference, sizes of N4, air, and one path to the tiles."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fmct.inference.sliding_window import batch_size, predict_series, sliding_grid
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish.load_model import PublishedModel
from fmct.publish.window_output import window_output
from fmct.tiling import Scan, cut_tile
from fmct.volume import Volume
from fmct.windows import Window
from tests.publish.tiny_models import in_memory, record

SIZE = (8, 12, 16)


class Stub(nn.Module):
    """Logits that are a function of each voxel of the first channel."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.function = function
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor, spacing: torch.Tensor | None = None) -> torch.Tensor:
        del spacing
        self.calls.append(len(x))
        return self.function(x[:, :1]) * self.scale


def scan_of(shape: tuple[int, int, int], *, air: bool = False, seed: int = 0) -> Volume:
    """Return a CT of soft tissue with noise on a 2 mm grid; with `air` its first half along y is air."""
    voxels = np.random.default_rng(seed).integers(-100, 200, shape).astype(np.int16)
    if air:
        voxels[:, : shape[1] // 2] = -1000
    return Volume(voxels, np.diag([2.0, -2.0, -2.0, 1.0])[[2, 1, 0, 3]])


def stubbed(function: Callable[[torch.Tensor], torch.Tensor], **spec: object) -> PublishedModel:
    settings = {"size_voxels": SIZE, "spacing_mm": (2.0, 2.0, 2.0), "skip_air": 0.0, **spec}
    preprocessing = Preprocessing((Window(-1000, 1000),), InputSpec(**settings))  # type: ignore[arg-type]
    return PublishedModel(Stub(function), record("segmenter", preprocessing=preprocessing))


def prepared(model: PublishedModel, volume: Volume) -> Scan:
    return model.preprocessing.scan(volume)


@pytest.mark.parametrize("shape", [(5, 9, 11), SIZE, (9, 12, 16), (17, 13, 30), (8, 40, 16)])
def test_n4_a_constant_comes_back_everywhere_in_the_input_shape(shape: tuple[int, int, int]) -> None:
    """N4: smaller than the window, equal, not divisible by the stride; weights sum to one."""
    model = stubbed(lambda x: torch.full_like(x, 0.7))
    output = predict_series(model, prepared(model, scan_of(shape)), precision="fp32")
    assert output.probability is not None
    assert output.probability.shape == (1, *shape)
    wanted = torch.sigmoid(torch.tensor(0.7))
    assert float((output.probability - wanted).abs().max()) < 1e-6


def test_logits_are_averaged_with_gaussian_weights_and_then_squashed() -> None:
    """Against a slow reference: every window of half a side's stride, a Gaussian of an eighth of the side."""
    shape = (12, 18, 31)
    weights = torch.linspace(-3, 3, int(np.prod(SIZE))).reshape(1, 1, *SIZE)
    model = stubbed(lambda x: weights * (1 + x))
    scan = prepared(model, scan_of(shape))
    output = predict_series(model, scan, precision="fp32")
    assert output.probability is not None
    total, mass = np.zeros(shape), np.zeros(shape)
    gauss = gaussian_window()
    for z in starts(shape[0], SIZE[0]):
        for y in starts(shape[1], SIZE[1]):
            for x in starts(shape[2], SIZE[2]):
                box = tuple(slice(a, a + n) for a, n in zip((z, y, x), SIZE, strict=True))
                hu = cut_tile(scan, sliding_grid(model.preprocessing, scan), np.array([z, y, x])).numpy()
                logits = weights[0, 0].numpy() * (1 + (np.clip(hu, -1000, 1000) + 1000) / 2000)
                total[box] += gauss * logits
                mass[box] += gauss
    wanted = 1 / (1 + np.exp(-total / mass))
    assert np.abs(output.probability[0].numpy() - wanted).max() < 1e-5
    assert output.windows == output.looked_at == 2 * 2 * 3


def starts(count: int, side: int) -> list[int]:
    """Return the first voxels of windows half a side apart, the last one ending with the series."""
    stride, found = side // 2, [0]
    while found[-1] + side < count:
        found.append(min(found[-1] + stride, count - side))
    return found


def gaussian_window() -> np.ndarray:
    """Return a Gaussian of an eighth of the side, at the voxels' centres, nowhere below a thousandth."""
    z, y, x = (np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in SIZE)
    return np.maximum(z[:, None, None] * y[None, :, None] * x[None, None, :], 1e-3)


def test_air_is_not_looked_at_and_weighs_nothing() -> None:
    """What is left out neither runs nor pulls the average of a window that reaches into it."""
    volume = scan_of((8, 48, 16), air=True)
    model = stubbed(lambda x: torch.full_like(x, 0.7), skip_air=0.2)
    output = predict_series(model, prepared(model, volume), precision="fp32")
    assert output.probability is not None
    assert (output.windows, output.looked_at) == (7, 4)
    module = model.module
    assert isinstance(module, Stub)
    assert sum(module.calls) - 1 == output.looked_at  # one call found out that the network segments
    reached = output.probability[0, 4, :, 8]
    wanted = float(torch.sigmoid(torch.tensor(0.7)))
    assert float(reached[:18].max()) == 0.0
    assert float((reached[18:] - wanted).abs().max()) < 1e-6


def test_a_series_of_air_still_has_one_window_looked_at() -> None:
    volume = replace(scan_of((8, 40, 16)), voxels=np.full((8, 40, 16), -1000, np.int16))
    model = stubbed(lambda x: torch.full_like(x, 0.7), skip_air=0.2)
    output = predict_series(model, prepared(model, volume), precision="fp32")
    assert output.looked_at >= 1
    assert output.probability is not None
    assert float(output.probability.max()) == pytest.approx(float(torch.sigmoid(torch.tensor(0.7))), abs=1e-6)


def test_a_finer_or_turned_scan_is_seen_at_the_models_spacing_and_orientation() -> None:
    """The probability is the tissue's own value, wherever the scan's axes point."""
    volume = scan_of((10, 24, 28))
    for axis, value in enumerate((0, 120, 60)):
        place: list[slice | int] = [slice(None)] * 3
        place[axis] = 3
        if value:
            volume.voxels[tuple(place)] = value
    model = stubbed(lambda x: 10 * x)
    straight = predict_series(model, prepared(model, volume), precision="fp32").probability
    turned = predict_series(model, prepared(model, volume.oriented("LIA")), precision="fp32").probability
    assert straight is not None
    assert turned is not None
    assert torch.equal(straight, turned)


def test_window_logits_become_the_series_by_their_maximum() -> None:
    model = in_memory("phase")
    volume = Volume(
        np.random.default_rng(1).integers(-100, 200, (24, 24, 24)).astype(np.int16),
        np.diag([12.0, -12.0, -12.0, 1.0])[[2, 1, 0, 3]],
    )
    scan = model.preprocessing.scan(volume)
    output = predict_series(model, scan, precision="fp32", attention=True)
    grid = sliding_grid(model.preprocessing, scan)
    logits = []
    for z in (0, 8):
        for y in (0, 8):
            for x in (0, 8):
                hu = cut_tile(scan, grid, np.array([z, y, x]))
                one = model((hu.clamp(-160, 240) + 160)[None, None] / 400).classification
                assert one is not None
                logits.append(float(one[0, 0]))
    assert output.logits is not None
    assert output.windows == 8
    assert float(output.logits[0]) == pytest.approx(max(logits), abs=1e-5)
    assert output.attention is not None
    assert output.attention.shape == (24, 24, 24)
    assert float(output.attention.min()) > 0


def test_a_classifier_reads_the_tiles_of_its_preprocessing() -> None:
    model = in_memory("mil")
    volume = Volume(
        np.random.default_rng(1).integers(-100, 200, (24, 24, 24)).astype(np.int16),
        np.diag([12.0, -12.0, -12.0, 1.0])[[2, 1, 0, 3]],
    )
    scan = model.preprocessing.scan(volume)
    tiles = model.preprocessing.tiles(volume)
    output = predict_series(model, scan, precision="fp32")
    with torch.no_grad():
        bags = torch.zeros(len(tiles.tensor), dtype=torch.int64)
        wanted = model.module(tiles.tensor, tiles.spacing_mm, bags).logits[0]
    assert output.logits is not None
    assert output.probability is None
    assert torch.allclose(output.logits, wanted, atol=1e-5)
    assert (output.windows, output.looked_at) == (8, 8)


@pytest.mark.parametrize("mode", ["whole", "resize"])
def test_a_series_that_is_one_input_is_mapped_back_from_it(mode: str) -> None:
    spacing = None if mode == "resize" else (2.0, 2.0, 2.0)
    model = stubbed(lambda x: 10 * x, mode=mode, spacing_mm=spacing)
    volume = scan_of((8, 18, 20))
    output = predict_series(model, prepared(model, volume), precision="fp32")
    assert output.probability is not None
    assert output.probability.shape[1:] == output.grid.shape
    if mode == "whole":
        shown = torch.from_numpy((volume.voxels.astype(np.float32) + 1000) / 2000)
        assert torch.allclose(output.probability[0], torch.sigmoid(10 * shown), atol=1e-5)
    else:
        assert output.grid.shape == SIZE


def test_batches_hold_about_as_many_tokens_as_they_may() -> None:
    assert batch_size(in_memory("phase")) == 2048 // 64


def test_a_network_without_logits_is_refused() -> None:
    from fmct.errors import ArtefactError

    with pytest.raises(ArtefactError, match="neither logits nor classification nor segmentation"):
        window_output(object(), None)
    assert window_output(torch.zeros(2, 3), None).classification is not None

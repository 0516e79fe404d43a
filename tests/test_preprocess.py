from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from fmct import pyramid
from fmct.data import render, view_config, views
from fmct.data.foreground import find_body
from fmct.errors import ArtefactError, ConfigError, DataError
from fmct.phantoms import body as phantom
from fmct.preprocess import InputSpec, Preprocessing, join_tiles
from fmct.shapes import Triple
from fmct.store import Entry, Level
from fmct.tiling import Grid, cut_tile
from fmct.volume import Volume
from fmct.windows import Window, apply_windows

AS_IT_IS = Window(-32768, 32767, shift=0.0, scale=1.0)
WINDOWS = (Window(-160, 240, "soft tissue"), Window(-1000, 200, shift=-400.0, scale=300.0))


def body(seed: int = 1) -> Volume:
    return phantom.body(seed, (40, 60, 70), (5.0, 4.0, 4.4))


def entry_of(volume: Volume) -> Entry:
    """Return what a store would say of the volume."""
    spacing = tuple(float(s) for s in volume.spacing)
    factors = pyramid.level_factors(volume.shape, spacing)
    levels = tuple(
        Level(f, tuple(-(-n // k) for n, k in zip(volume.shape, f, strict=True)), pyramid.level_spacing(spacing, f))
        for f in factors
    )
    rows = tuple(tuple(row) for row in volume.affine.tolist())
    limits = (float(volume.voxels.min()), float(volume.voxels.max()))
    return Entry("e", "p", "CT", "HU", volume.shape, spacing, rows, rows, limits, "h", "v", levels)


@pytest.mark.parametrize("spacing", [(5.0, 4.0, 4.4), (7.0, 7.0, 7.0), (20.0, 9.0, 11.0)])
def test_tile_values_are_trilinear_interpolation_at_their_places_in_the_body(
    spacing: tuple[float, float, float],
) -> None:
    volume = body()
    preprocessing = Preprocessing((AS_IT_IS,), InputSpec(size_voxels=(12, 10, 14), spacing_mm=spacing, skip_air=0.0))
    tiles = preprocessing.tiles(volume)
    levels = pyramid.build(volume.voxels, volume.spacing.tolist())
    factor, voxels = levels[pyramid.choose_level(volume.spacing.tolist(), [f for f, _ in levels], spacing)]
    for number in range(0, len(tiles.tensor), 5):
        index = np.stack(np.meshgrid(*(np.arange(n) for n in (12, 10, 14)), indexing="ij"), -1)
        world = (tiles.start_voxels[number] + index) @ tiles.grid.affine[:3, :3].T + tiles.grid.affine[:3, 3]
        np.testing.assert_allclose(world[0, 0, 0], tiles.start_mm[number], atol=1e-6)
        level0 = volume.index(world)
        position = pyramid.level_index(level0, factor)
        clamped = np.clip(position, 0, np.array(voxels.shape) - 1)
        expected = map_coordinates(voxels.astype(np.float64), np.moveaxis(clamped, -1, 0), order=1)
        outside = ((level0 < -0.5 - 1e-6) | (level0 > np.array(volume.shape) - 0.5 + 1e-6)).any(-1)
        expected[outside] = -1000
        np.testing.assert_allclose(tiles.tensor[number, 0].numpy(), expected, atol=0.02)


def test_a_tile_shows_what_a_training_view_of_the_same_place_shows() -> None:
    volume = body(2)
    entry = entry_of(volume)
    levels = pyramid.build(volume.voxels, entry.spacing_mm)
    still = view_config.AppearanceConfig(
        flip=[0.0] * 3,
        shift_hu=view_config.Chance(),
        gain=view_config.Chance(),
        blur=view_config.Chance(),
        noise_hu=view_config.Chance(),
    )
    view = view_config.ViewConfig(
        count=6, size=[16, 12, 20], in_plane_mm=[60.0, 400.0], through_plane_mm=[60.0, 400.0], appearance=[still]
    )
    config = view_config.ViewsConfig(view, replace(view, count=0), list(WINDOWS))
    factor, coarse = levels[-1]
    chosen = views.sample_parameters(
        config, entry, find_body(coarse, factor, entry.shape, above=-500.0), seed=3, draw=5
    )
    assert len({parameters.level for parameters in chosen}) > 1
    for parameters in chosen:
        box = tuple(slice(a, a + n) for a, n in zip(parameters.start, parameters.shape, strict=True))
        crop = torch.from_numpy(np.ascontiguousarray(levels[parameters.level][1][box]))
        trained = render.render([crop], [parameters], windows=WINDOWS)[0]
        preprocessing = Preprocessing(WINDOWS, InputSpec(size_voxels=(16, 12, 20), spacing_mm=parameters.spacing_mm))
        scan = preprocessing.scan(volume)
        assert scan.factor == levels[parameters.level][0]
        pitch = np.asarray(parameters.spacing_mm) / volume.spacing
        grid = Grid(
            shape=(16, 12, 20),
            spacing_mm=parameters.spacing_mm,
            native_mm=entry.spacing_mm,
            origin=tuple(np.asarray(parameters.corner) + pitch / 2),
            affine=np.eye(4),
            tile=(16, 12, 20),
            starts=np.zeros((1, 3), dtype=np.int64),
        )
        values = cut_tile(scan, grid, np.zeros(3, dtype=np.int64))
        torch.testing.assert_close(apply_windows(values[None], WINDOWS)[0], trained, atol=2e-5, rtol=0)


def test_orientation_of_the_file_does_not_matter() -> None:
    volume = body()
    preprocessing = Preprocessing(WINDOWS, InputSpec(size_voxels=(16, 16, 16), spacing_mm=(9.0, 9.0, 9.0)))
    expected = preprocessing.tiles(volume)
    for orientation in ("RAS", "LPI", "AIR"):
        found = preprocessing.tiles(volume.oriented(orientation))
        assert torch.equal(found.tensor, expected.tensor)
        np.testing.assert_allclose(found.start_mm, expected.start_mm, atol=1e-9)


@pytest.mark.parametrize(("size", "overlap"), [(16, 0.0), (16, 0.25), (9, 0.5), (64, 0.3)])
def test_tiles_cover_the_series_and_overlap_as_asked(size: int, overlap: float) -> None:
    volume = body()
    spec = InputSpec(size_voxels=(size,) * 3, spacing_mm=(6.0, 6.0, 6.0), overlap=overlap, skip_air=0.0)
    tiles = Preprocessing(WINDOWS, spec).tiles(volume)
    grid = tiles.grid
    covered = np.zeros(grid.shape, dtype=int)
    for start in tiles.start_voxels:
        z, y, x = (slice(max(int(a), 0), int(a) + size) for a in start)
        covered[z, y, x] += 1
    assert covered.min() >= 1
    for axis in range(3):
        places = np.unique(tiles.start_voxels[:, axis])
        if len(places) > 1:
            assert np.diff(places).max() <= size - np.floor(size * overlap) + 1
            assert places[0] == 0
            assert places[-1] == grid.shape[axis] - size
    extent = np.asarray(volume.shape) * volume.spacing
    assert (np.asarray(grid.shape) * 6.0 >= extent - 1e-6).all()
    assert (np.asarray(grid.shape) * 6.0 < extent + 6).all()
    middle = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    np.testing.assert_allclose(middle, volume.world((np.asarray(volume.shape) - 1) / 2), atol=1e-6)


def test_air_is_left_out_and_foreground_is_counted() -> None:
    voxels = np.full((32, 32, 32), -1000, dtype=np.int16)
    voxels[:16, :16, :16] = 40
    voxels[16:, 16:, 16:20] = 40
    volume = Volume(voxels, np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
    spec = InputSpec(size_voxels=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0), overlap=0.0, skip_air=0.1)
    preprocessing = Preprocessing(WINDOWS, spec, orientation=volume.orientation)
    tiles = preprocessing.tiles(volume)
    assert tiles.start_voxels.tolist() == [[0, 0, 0], [16, 16, 16]]
    assert tiles.foreground.tolist() == [1.0, 0.25]
    empty = replace(volume, voxels=np.full_like(voxels, -1000))
    alone = preprocessing.tiles(empty)
    assert len(alone.tensor) == 1
    assert alone.foreground.tolist() == [0.0]


def test_whole_completes_and_resize_stretches() -> None:
    volume = body()
    whole = Preprocessing(WINDOWS, InputSpec("whole", (8, 8, 8), (10.0, 10.0, 10.0))).tiles(volume)
    assert whole.tensor.shape == (1, 2, 24, 24, 32)  # 20 × 24 × 30.8 voxels of 10 mm
    assert whole.spacing_mm.tolist() == [[10.0, 10.0, 10.0]]
    resized = Preprocessing(WINDOWS, InputSpec("resize", (8, 12, 10), None)).tiles(volume)
    assert resized.tensor.shape == (1, 2, 8, 12, 10)
    np.testing.assert_allclose(resized.spacing_mm[0], [25.0, 20.0, 30.8], rtol=1e-6)


def test_batches_are_the_tiles() -> None:
    volume = body()
    preprocessing = Preprocessing(WINDOWS, InputSpec(size_voxels=(16, 16, 16), spacing_mm=(7.0, 7.0, 7.0)))
    expected = preprocessing.tiles(volume)
    parts = list(preprocessing.batches(preprocessing.scan(volume), batch_size=3))
    assert max(len(part.tensor) for part in parts) == 3
    found = join_tiles(parts)
    assert torch.equal(found.tensor, expected.tensor)
    assert torch.equal(found.foreground, expected.foreground)
    assert torch.equal(preprocessing(volume), expected.tensor)


def test_windows_clip_then_scale() -> None:
    values = torch.tensor([-5000.0, -1000.0, -400.0, 0.0, 40.0, 240.0, 9000.0]).view(1, 1, 1, 7)
    first, second = apply_windows(values, WINDOWS)[0].flatten(1)
    assert first.tolist() == pytest.approx([0, 0, 0, 0.4, 0.5, 1, 1])
    assert second.tolist() == pytest.approx([-2, -2, 0, 4 / 3, 44 / 30, 2, 2])


def test_percentiles_and_mean_come_from_the_series_itself() -> None:
    volume = body()
    spec = InputSpec(size_voxels=(32, 32, 32), spacing_mm=(9.0, 9.0, 9.0), foreground_above=None)
    preprocessing = Preprocessing((), spec, percentiles=(2.0, 98.0))
    scan = preprocessing.scan(volume)
    assert scan.values == pytest.approx(tuple(np.percentile(volume.voxels, [2, 98])))
    levels = pyramid.build(volume.voxels, volume.spacing.tolist())
    coarse = next(voxels for _, voxels in levels if max(voxels.shape) <= 64)
    assert scan.foreground_above == pytest.approx(coarse.mean())
    tensor = preprocessing(volume)
    assert tensor.shape[1] == preprocessing.channels == 1
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)


def test_other_modalities_are_refused() -> None:
    volume = replace(body(), modality="MR", units="arbitrary")
    with pytest.raises(DataError, match="takes CT, and the series is MR"):
        Preprocessing(WINDOWS)(volume)


def test_what_lies_around_a_series_of_another_modality_is_its_lowest_value() -> None:
    voxels = np.full((8, 8, 8), 7.0, dtype=np.float32)
    voxels[4, 4, 4] = 3.0
    volume = Volume(voxels, np.eye(4)[[2, 1, 0, 3]], modality="MR", units="arbitrary")
    spec = InputSpec(size_voxels=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0), foreground_above=None, skip_air=0.0)
    tensor = Preprocessing((AS_IT_IS,), spec, modality="MR", orientation=volume.orientation)(volume)
    assert tensor[0, 0, 0, 0, 0].item() == 3.0
    assert (tensor == 7.0).sum() == 511


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "squeeze"},
        {"overlap": 1.0},
        {"skip_air": -0.1},
        {"size_voxels": (0, 4, 4)},
        {"spacing_mm": None},
        {"spacing_mm": (1.0, float("nan"), 1.0)},
        {"mode": "resize"},
        {"pool": "max"},
    ],
)
def test_impossible_input_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="input"):
        InputSpec(**changes)


def test_description_survives_json_and_refuses_what_it_does_not_know() -> None:
    size: Triple = (16, 12, 8)
    for preprocessing in (
        Preprocessing(WINDOWS, InputSpec(size_voxels=size, spacing_mm=(2.0, 1.5, 1.0)), modality="CT"),
        Preprocessing(
            (), InputSpec("resize", size, None, foreground_above=None), modality="MR", percentiles=(0.5, 99.5)
        ),
    ):
        tree = preprocessing.to_dict()
        assert Preprocessing.from_dict(tree) == preprocessing
    tree = Preprocessing(WINDOWS).to_dict()
    for broken in (
        {**tree, "input": {**tree["input"], "flavour": 1}},
        {key: value for key, value in tree.items() if key != "windows"},
        {**tree, "windows": [{"low": 1.0, "high": 0.0}]},
        {**tree, "windows": []},
        {**tree, "surprise": 1},
    ):
        with pytest.raises(ArtefactError, match=r"preprocess\.json"):
            Preprocessing.from_dict(broken)

"""Whole-series steps of published encoders, from a file, against slow references that share no code with them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from fmct.axes import spline_axis
from fmct.data.window_config import WindowsConfig, window_grid
from fmct.errors import ConfigError, DataError
from fmct.io import read_volume
from fmct.preprocess import InputSpec, Preprocessing
from fmct.series_steps import SeriesSteps
from fmct.volume import Volume
from fmct.windows import Window

SPACING = (1.3, 1.6, 2.7)  # of the file's axes x, y, z
WINDOWS = (Window(0, 80), Window(-20, 180), Window(-800, 2000))
SIZE = (8, 9, 10)


def phantom() -> np.ndarray:
    """Return HU (R, A, S) of a skull that looks the same along no axis: thicker left, cut in front, a bleed aside."""
    r, a, s = np.meshgrid(*(np.linspace(-1, 1, n) for n in (26, 22, 14)), indexing="ij")
    radius = np.sqrt((r / 0.8) ** 2 + (a / 0.7) ** 2 + (s / 0.75) ** 2)
    hu = np.where(radius < 1, 32.0, -1000.0)
    hu[(radius > 0.92 - 0.08 * (r < 0)) & (radius < 1) & (a < 0.5)] = 950.0
    hu[(r - 0.3) ** 2 + (a + 0.2) ** 2 + (s - 0.1) ** 2 < 0.05] = 72.0
    hu[(s < -0.4) & (radius < 0.85)] += 35
    hu += 5 * np.sin(3 * r + 5 * a + 7 * s)
    return np.rint(hu).astype(np.int16)


def write(path: Path, axes: tuple[int, int, int] = (0, 1, 2), flips: tuple[bool, ...] = (False,) * 3) -> Path:
    """Write the phantom with its voxel axes in another order and direction, and an affine that says so."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-17.0, 9.0, 31.0)
    image = nib.Nifti1Image(phantom(), affine)
    codes = [("R", "L"), ("A", "P"), ("S", "I")]
    wanted = tuple(codes[axis][int(flip)] for axis, flip in zip(axes, flips, strict=True))
    transform = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(wanted))
    nib.save(image.as_reoriented(transform), path)
    return path


def published(order: str = "first") -> Preprocessing:
    steps = SeriesSteps(
        spline_mm=(1.0, 1.0, 1.0), crop="above", resize="area", windows_first=order == "first", half=order == "first"
    )
    spec = InputSpec("resize", SIZE, None, skip_air=0.0, pool="mean", foreground_above=0.0, steps=steps)
    return Preprocessing(WINDOWS, spec, orientation="RAS")


def slow(order: str, hu: np.ndarray | None = None) -> np.ndarray:
    """Return FM-HCT's input of the phantom, (3, *SIZE): scipy's spline, a box by search, means voxel by voxel."""
    hu = phantom() if hu is None else hu
    count = [round((n - 1) * s) + 1 for n, s in zip(hu.shape, SPACING, strict=True)]
    places = np.meshgrid(*(np.arange(n) / s for n, s in zip(count, SPACING, strict=True)), indexing="ij")
    fine = map_coordinates(hu.astype(np.float64), places, order=3, mode="nearest")
    inside = np.argwhere(fine > 0)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    body = fine[low[0] : high[0], low[1] : high[1], low[2] : high[2]]

    def windowed(values: np.ndarray) -> np.ndarray:
        return np.stack([np.clip((values - w.low) / (w.high - w.low), 0, 1) for w in WINDOWS])

    def shrunk(values: np.ndarray) -> np.ndarray:
        out = np.empty((len(values), *SIZE))
        edges = [
            [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in zip(values.shape[1:], SIZE, strict=True)
        ]
        for i, (a, b) in enumerate(edges[0]):
            for j, (c, d) in enumerate(edges[1]):
                for k, (e, f) in enumerate(edges[2]):
                    out[:, i, j, k] = values[:, a:b, c:d, e:f].mean(axis=(1, 2, 3))
        return out

    return (
        shrunk(windowed(body)).astype(np.float16).astype(np.float64)
        if order == "first"
        else windowed(shrunk(body[None])[0])
    )


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize(
    ("axes", "flips"), [((0, 1, 2), (False,) * 3), ((0, 1, 2), (True, True, False)), ((2, 0, 1), (True, False, True))]
)
def test_a_file_becomes_the_published_input_however_its_axes_run(
    tmp_path: Path, order: str, axes: tuple[int, int, int], flips: tuple[bool, ...]
) -> None:
    volume = read_volume(write(tmp_path / "head.nii.gz", axes, flips))
    found = published(order)(volume)[0].numpy()
    np.testing.assert_allclose(found, slow(order), atol=6e-4 if order == "first" else 2e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_axis_the_wrong_way_round_is_another_input(tmp_path: Path, axis: int) -> None:
    found = published()(read_volume(write(tmp_path / "head.nii.gz")))[0].numpy()
    assert np.abs(found - slow("first", np.flip(phantom(), axis))).mean() > 0.005


@pytest.mark.parametrize("swap", [(0, 1), (0, 2), (1, 2)])
def test_two_axes_in_the_wrong_order_are_another_input(tmp_path: Path, swap: tuple[int, int]) -> None:
    found = published()(read_volume(write(tmp_path / "head.nii.gz")))[0].numpy()
    assert np.abs(found - slow("first", np.swapaxes(phantom(), *swap))).mean() > 0.005


def test_the_two_window_orders_differ(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "head.nii.gz"))
    assert (published("first")(volume) - published("last")(volume)).abs().max() > 0.05


def test_a_token_knows_where_in_the_body_it_lies(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "head.nii.gz"))
    tiles = published("last").tiles(volume)
    centres = tiles.grid.affine[:3, 3]
    spacing = tiles.spacing_mm[0].numpy()
    fine = map_coordinates(
        phantom().astype(float),
        np.meshgrid(*(np.arange(round((n - 1) * s) + 1) / s for n, s in zip(phantom().shape, SPACING, strict=True)),
                    indexing="ij"),
        order=3, mode="nearest",
    )  # fmt: skip
    inside = np.argwhere(fine > 0)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    np.testing.assert_allclose(spacing, (high - low) / np.array(SIZE), rtol=1e-5)
    np.testing.assert_allclose(centres, np.array([-17.0, 9.0, 31.0]) + low - 0.5 + spacing / 2, atol=1e-5)


def test_spline_rows_are_scipys(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=17)
    places = np.linspace(0, 16.3, 40)
    wanted = map_coordinates(values, [places], order=3, mode="nearest")
    np.testing.assert_allclose(spline_axis(places, 17).matrix @ values, wanted, atol=1e-5)


def test_voxelfms_input_is_isotropic_at_the_finest_axis_and_whole_patches(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "head.nii.gz"))  # canonical: z, y, x at 2.7, 1.6, 1.3 mm
    steps = SeriesSteps(clip=(-1000.0, 940.0), isotropic_mm=0.75)
    spec = InputSpec("whole", (4, 4, 4), None, skip_air=0.0, pool="mean", steps=steps)
    found = Preprocessing((Window(-1000, 1900, shift=-573.8, scale=461.3),), spec).tiles(volume)
    count = [round(n * s / 1.3) for n, s in zip(volume.shape, volume.spacing.tolist(), strict=True)]
    kept = [n - n % 4 for n in count]
    grid = np.meshgrid(
        *(
            np.clip((np.arange(m) + (n - m) // 2 + 0.5) * size / n - 0.5, 0, size - 1)
            for n, m, size in zip(count, kept, volume.shape, strict=True)
        ),
        indexing="ij",
    )
    wanted = (map_coordinates(np.clip(volume.voxels.astype(float), -1000, 940), grid, order=1) + 573.8) / 461.3
    np.testing.assert_allclose(found.tensor[0, 0].numpy(), wanted, atol=1e-3)


def test_3dinos_input_lies_between_percentiles_of_the_whole_series(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "head.nii.gz"))
    steps = SeriesSteps(crop="percentile", windows_first=True)
    spec = InputSpec("resize", SIZE, None, skip_air=0.0, pool="mean", foreground_above=None, steps=steps)
    found = Preprocessing((), spec, orientation="RAS", percentiles=(0.05, 99.95))(volume)[0, 0].numpy()
    hu = phantom().astype(float)
    low, high = np.percentile(hu, [0.05, 99.95])
    inside = np.argwhere(hu > low)
    a, b = inside.min(axis=0), inside.max(axis=0) + 1
    scaled = np.clip(2 * (hu - low) / (high - low) - 1, -1, 1)[a[0] : b[0], a[1] : b[1], a[2] : b[2]]
    places = [np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1) for n, m in zip(scaled.shape, SIZE, strict=True)]
    wanted = map_coordinates(scaled, np.meshgrid(*places, indexing="ij"), order=1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_steps_travel_with_the_preprocessing() -> None:
    tree = published().to_dict()
    assert Preprocessing.from_dict(tree) == published()
    plain = Preprocessing(WINDOWS, InputSpec())
    assert "steps" not in plain.to_dict()["input"]


def test_a_series_without_foreground_is_refused() -> None:
    air = Volume(np.full((6, 6, 6), -1000, dtype=np.int16), np.diag([-2.0, 2.0, -2.0, 1.0])[[2, 1, 0, 3]])
    with pytest.raises(DataError, match="no voxel of this series lies above 0"):
        published()(air)


def test_a_series_thinner_than_a_patch_is_refused(tmp_path: Path) -> None:
    spec = InputSpec("whole", (64, 4, 4), None, skip_air=0.0, pool="mean", steps=SeriesSteps(isotropic_mm=0.75))
    with pytest.raises(DataError, match="too thin"):
        Preprocessing((Window(-1000, 1900),), spec)(read_volume(write(tmp_path / "head.nii.gz")))


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": (5.0, 5.0)},
        {"resize": "cubic"},
        {"crop": "body"},
        {"spline_mm": (1.0, 0.0, 1.0)},
        {"isotropic_mm": -1.0},
    ],
)
def test_impossible_steps_are_told(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="steps"):
        SeriesSteps(**settings)  # type: ignore[arg-type]


def test_tiles_and_windows_do_not_go_with_steps() -> None:
    with pytest.raises(ConfigError, match="mode resize or whole"):
        InputSpec(steps=SeriesSteps())
    with pytest.raises(ConfigError, match=r"recipe finetune\.head_ct"):
        window_grid(WindowsConfig(), published())


def test_the_store_gives_what_the_file_gives(tmp_path: Path) -> None:
    from fmct.inference.embed import scan_of_entry
    from fmct.store.ingest import IngestConfig, ingest
    from fmct.store.reader import Store

    (tmp_path / "scans").mkdir()
    path = write(tmp_path / "scans" / "head.nii.gz", (2, 0, 1), (True, False, True))
    ingest([tmp_path / "scans"], tmp_path / "store", config=IngestConfig(workers=1))
    store = Store.open(tmp_path / "store")
    batches = published().batches(scan_of_entry(published(), store, store.entries[0]), batch_size=4)
    torch.testing.assert_close(next(iter(batches)).tensor, published()(read_volume(path)))
    store.close()

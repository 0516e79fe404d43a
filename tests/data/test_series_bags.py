"""Bags of windows: consecutive draws of one series, and windows about the body's middle along its axis."""

import numpy as np
import pytest

from fmct.data.foreground import find_body
from fmct.data.label_sampler import LabelSampler, Pool
from fmct.data.labelled import WindowsConfig, build_labelled_loader, read_cohort
from fmct.data.window_config import SharesConfig, check_windows
from fmct.errors import ConfigError
from fmct.preprocess import InputSpec, Preprocessing
from fmct.tiling import about_the_body, plan_tiles
from fmct.windows import Window
from tests.contrast import bright_vessels
from tests.data import labelled_store


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> labelled_store.LabelledStore:
    return labelled_store.make_labelled_store(tmp_path_factory.mktemp("bags"))


def test_consecutive_draws_show_one_series() -> None:
    pools = [Pool("uniform", (0, 2, 4), 0.5), Pool("uniform", (1, 3), 0.5)]
    single, bags = (LabelSampler(pools, seed=3, per_series=n) for n in (1, 4))
    assert [bags(draw) for draw in range(0, 80, 4)] == [single(draw) for draw in range(20)]
    assert all(len({bags(4 * bag + tile) for tile in range(4)}) == 1 for bag in range(20))


def test_windows_of_a_bag_differ_and_lie_about_the_middle(stored: labelled_store.LabelledStore) -> None:
    """The body fills y 3..24 and x 3..28 of 24 × 28 × 32 voxels: windows centre there within the jitter."""
    config = WindowsConfig(
        shares=SharesConfig(0.0, 0.0, 1.0), per_series=3, place="body_axis", jitter_mm=2.0, label_scope="global"
    )
    cohort = read_cohort(labelled_store.changed(stored.config, masks=""))
    spec = labelled_store.preprocessing((8, 12, 12))
    batch = next(iter(build_labelled_loader(cohort, "train", spec, config, seed=1, batch_size=6)))
    assert batch.entries[0] == batch.entries[1] == batch.entries[2] != batch.entries[3]
    assert not np.array_equal(batch.volumes[0].numpy(), batch.volumes[1].numpy())
    # 12 voxels about the middle of a body of 22 and 26 never reach the air beside it.
    assert bool((batch.volumes[:, 0].amax(dim=1) > -0.5).all())
    with pytest.raises(ConfigError, match="does not divide into whole series"):
        build_labelled_loader(cohort, "train", spec, config, seed=1, batch_size=4)
    with pytest.raises(ConfigError, match="place one of"):
        check_windows(WindowsConfig(place="somewhere"))


def test_the_middle_of_a_slab_is_that_of_its_voxels() -> None:
    random = np.random.default_rng(0)
    voxels = np.where(random.random((10, 9, 11)) < 0.3, 0.0, -1000.0)
    voxels[6:8] = -1000.0
    body = find_body(voxels, (2, 3, 4), (20, 27, 44), above=-500.0)
    low, high = np.array([-0.5, 3.5, 11.5]), np.array([7.5, 11.5, 15.5])
    found = body.middle(low, high)
    for row, (first, last) in enumerate(((0, 4), (2, 6))):
        _, y, x = np.nonzero(voxels[first:last] > -500)
        assert found[row] == pytest.approx([(y.mean() + 0.5) * 3 - 0.5, (x.mean() + 0.5) * 4 - 0.5])
    assert found[2] == pytest.approx([13, 21.5])  # nothing there: the middle of the scan


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "IAR"])
def test_axial_tiles_follow_the_body_in_any_orientation(orientation: str) -> None:
    volume = bright_vessels.volume(1, slices=50)
    spec = InputSpec(mode="axial", size_voxels=(12, 16, 20), spacing_mm=(6.0, 6.0, 6.0), overlap=0.5)
    order = tuple({"SPL": (0, 1, 2), "IAR": (0, 1, 2), "RAS": (2, 1, 0)}[orientation])
    spec = InputSpec(**{**vars(spec), "size_voxels": tuple(spec.size_voxels[k] for k in order)})
    preprocessing = Preprocessing((Window(-1000, 1000),), spec, orientation=orientation)
    assert orientation[preprocessing.body_axis] in "SI"
    tiles = preprocessing.tiles(volume)
    along = preprocessing.body_axis
    starts = np.sort(tiles.start_voxels[:, along])
    assert (starts[0], starts[-1]) == (0, 50 - 12)
    assert (np.diff(starts) <= 6).all()
    assert float(tiles.foreground.min()) > 0.6  # about the body, which fills less than half of the slices


def test_a_tile_without_body_stays_in_the_middle() -> None:
    volume = bright_vessels.volume(2)
    air = np.full_like(volume.voxels, -1000)
    scan = Preprocessing((Window(-1000, 1000),), InputSpec(spacing_mm=(6.0, 6.0, 6.0))).scan(
        bright_vessels.Volume(air, volume.affine)
    )
    grid = plan_tiles(scan.shape, scan.affine, size=(8, 8, 8), spacing_mm=(6.0, 6.0, 6.0), overlap=0.5, along=0)
    assert np.array_equal(about_the_body(scan, grid, 0).starts, grid.starts)
    assert np.array_equal(np.unique(grid.starts[:, 1:], axis=0), [[11, 13]])

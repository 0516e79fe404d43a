import dataclasses

import numpy as np
import pytest

from fmct import config as configuration
from fmct.data.foreground import Coarse
from fmct.data.view_config import AppearanceConfig, Chance, ViewConfig, ViewsConfig, check_views
from fmct.data.views import ViewParameters, sample_parameters
from fmct.errors import ConfigError
from fmct.phantoms import body as phantom
from fmct.windows import Window
from tests.data.scans import Scan, full_of, scan_of


@pytest.fixture(scope="module")
def body() -> Scan:
    return scan_of(phantom.body(0, (60, 110, 110), (5.0, 4.0, 4.0)))


def sample(
    scan: Scan, config: ViewsConfig, draw: int = 0, seed: int = 0, coarse: Coarse | None = None
) -> list[ViewParameters]:
    return sample_parameters(config, scan, coarse or scan.coarse(config.body_above), seed=seed, draw=draw)


def sides_mm(scan: Scan, view: ViewParameters) -> np.ndarray:
    return np.array(view.side) * scan.spacing_mm


def test_parameters_are_a_pure_function_of_seed_draw_and_view(body: Scan) -> None:
    config = ViewsConfig()
    first = sample(body, config, draw=7)
    assert sample(body, config, draw=7) == first
    assert sample(body, config, draw=8) != first
    assert sample(body, config, draw=7, seed=1) != first
    # Further views change nothing about the earlier ones.
    fewer = dataclasses.replace(config, local_views=dataclasses.replace(config.local_views, count=1))
    assert sample(body, fewer, draw=7) == first[:3]


def test_views_have_their_kinds_sizes_and_spacings(body: Scan) -> None:
    views = sample(body, ViewsConfig())
    assert [(v.kind, v.view, v.size) for v in views] == [
        ("global", 0, (96, 96, 96)), ("global", 1, (96, 96, 96)),
        *[("local", i, (48, 48, 48)) for i in range(2, 6)],
    ]  # fmt: skip
    for view in views:
        assert np.allclose(np.array(view.spacing_mm) * view.size, sides_mm(body, view))


def test_sides_are_log_uniform_in_their_ranges() -> None:
    scan = full_of(0, (100, 100, 100), (4.0, 4.0, 4.0))
    kind = ViewConfig(1, [8] * 3, in_plane_mm=[50, 200], through_plane_mm=[30, 300], aspect=[0.8, 1.25], finest=0)
    config = ViewsConfig(kind, dataclasses.replace(kind, count=0))
    coarse = scan.coarse()
    sides = np.array([sides_mm(scan, sample(scan, config, draw, coarse=coarse)[0]) for draw in range(1500)])
    in_plane = np.sqrt(sides[:, 1] * sides[:, 2])
    for values, low, high in ((sides[:, 0], 30, 300), (in_plane, 50, 200), (sides[:, 1] / sides[:, 2], 0.8, 1.25)):
        assert low <= values.min()
        assert values.max() <= high * 1.000001
        share = np.log(values / low) / np.log(high / low)
        assert np.abs(np.sort(share) - np.linspace(0, 1, len(share))).max() < 0.05  # Kolmogorov-Smirnov, p > 0.001


def test_a_view_is_not_much_finer_than_its_scan() -> None:
    kind = ViewConfig(1, [32] * 3, in_plane_mm=[32, 200], through_plane_mm=[32, 200], finest=0.5)
    thick = full_of(0, (60, 300, 300), (6.0, 0.7, 0.7))
    config = ViewsConfig(kind, dataclasses.replace(kind, count=0))
    spacing = np.array([sample(thick, config, draw)[0].spacing_mm for draw in range(50)])
    assert spacing[:, 0].min() >= 3 - 1e-9
    assert spacing[:, 1].min() < 1.5
    # Where the range forbids it, its upper end is taken.
    narrow = dataclasses.replace(kind, through_plane_mm=[20, 40])
    views = [sample(thick, ViewsConfig(narrow, config.local_views), draw)[0] for draw in range(5)]
    assert all(sides_mm(thick, view)[0] == pytest.approx(40) for view in views)


def test_a_view_is_no_larger_than_its_scan_where_the_range_allows() -> None:
    slab = full_of(0, (20, 200, 200), (2.0, 1.0, 1.0))
    kind = ViewConfig(1, [16] * 3, in_plane_mm=[50, 150], through_plane_mm=[20, 200])
    views = [sample(slab, ViewsConfig(kind, dataclasses.replace(kind, count=0)), draw)[0] for draw in range(30)]
    assert max(sides_mm(slab, view)[0] for view in views) <= 40 + 1e-9


def test_crops_are_inside_their_level_and_read_from_the_coarsest_that_serves(body: Scan) -> None:
    for draw in range(60):
        for view in sample(body, ViewsConfig(), draw):
            level = body.levels[view.level]
            assert all(
                a >= 0 and n >= 1 and a + n <= m for a, n, m in zip(view.start, view.shape, level.shape, strict=True)
            )
            factors = np.array(level.factor)
            sampled = np.abs(view.step) * factors * body.spacing_mm
            assert (np.array(body.spacing_mm) * factors <= np.where(factors > 1, sampled * 1.051, np.inf)).all()
            # Every voxel inside the scan finds both its neighbours in the crop.
            last = np.array(view.first) + np.array(view.step) * (np.array(view.size) - 1)
            low, high = np.minimum(view.first, last), np.maximum(view.first, last)
            assert (low >= np.where(np.array(view.start) > 0, 0, -np.inf)).all()
            ends = np.array(view.start) + view.shape < level.shape
            assert (high <= np.where(ends, np.array(view.shape) - 1, np.inf)).all()


def test_views_look_at_the_body_or_at_the_best_place(body: Scan) -> None:
    config = ViewsConfig()
    plain = dataclasses.replace(
        config,
        global_views=dataclasses.replace(config.global_views, tries=1),
        local_views=dataclasses.replace(config.local_views, tries=1),
    )
    coarse = body.coarse()
    aware = [v.body_fraction for d in range(40) for v in sample(body, config, d, coarse=coarse)]
    blind = [v.body_fraction for d in range(40) for v in sample(body, plain, d, coarse=coarse)]
    assert np.mean(np.array(aware) >= 0.5) > 0.9
    assert np.mean(blind) < np.mean(aware) - 0.05
    # An empty scan gives views, not an endless search.
    empty = full_of(-1000, (40, 40, 40), (4.0, 4.0, 4.0))
    assert [v.body_fraction for v in sample(empty, config)] == [0.0] * 6


def test_body_fraction_is_that_of_the_voxels(body: Scan) -> None:
    for draw in range(10):
        for view in sample(body, ViewsConfig(), draw):
            low = np.ceil(np.array(view.corner)).astype(int)
            high = np.floor(np.array(view.corner) + view.side).astype(int) + 1
            inside = tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))
            exact = (body.voxels[0][inside] > -500).sum() / np.prod(view.side)
            assert view.body_fraction == pytest.approx(exact, abs=0.12)


def test_views_of_a_draw_overlap_as_asked(body: Scan) -> None:
    for draw in range(40):
        first, second, *local = sample(body, ViewsConfig(), draw)
        for view, least in [(second, 0.5), *[(v, 1.0) for v in local]]:
            low = np.maximum(first.corner, view.corner)
            high = np.minimum(np.add(first.corner, first.side), np.add(view.corner, view.side))
            shared = (high - low) / np.minimum(first.side, view.side)
            assert (shared >= least - 1e-6).all()


def test_shares_follow_the_bodys_box() -> None:
    scan = full_of(-1000, (80, 100, 100), (2.0, 2.0, 2.0))
    scan.voxels[0][20:60, 30:80, 30:70] = 50
    scan = scan_of(type(phantom.body(0, (4, 4, 4), (1, 1, 1)))(scan.voxels[0], scan.affine))
    kind = ViewConfig(1, [16] * 3, in_plane_share=[0.5, 1.0], through_plane_share=[0.5, 1.0], finest=0)
    config = ViewsConfig(kind, dataclasses.replace(kind, count=0))
    for draw in range(30):
        view = sample(scan, config, draw)[0]
        sides = np.array(view.side)
        assert 0.5 <= sides[0] / 40 <= 1
        assert 0.5 <= sides[1] * sides[2] / (50 * 40) <= 1
        assert view.corner[0] >= 19.5 - 1e-9
        assert view.corner[0] + sides[0] <= 59.5 + 1e-9


def test_left_and_right_are_not_exchanged_by_default(body: Scan) -> None:
    views = [v for d in range(30) for v in sample(body, ViewsConfig(), d)]
    flipped = np.mean([[s < 0 for s in v.step] for v in views], axis=0)
    assert flipped[2] == 0
    assert 0.3 < flipped[0] < 0.7
    assert 0.3 < flipped[1] < 0.7
    assert all(v.order == (0, 1, 2) for v in views)


def test_modalities_other_than_ct_have_their_own_air(body: Scan) -> None:
    mr = dataclasses.replace(body, modality="MR", value_range=(0.0, 800.0), scale=0.5)
    view = sample(mr, dataclasses.replace(ViewsConfig(), body_above=None))[0]
    assert (view.air, view.scale) == (0.0, 0.5)
    assert sample(body, ViewsConfig())[0].air == -1000


def test_configurations_read_from_yaml() -> None:
    tree = {
        "global_views": {
            "count": 2,
            "size": [32, 32, 32],
            "appearance": [{"blur": {"probability": 1.0, "range": [0.5, 1]}}],
        },
        "windows": [{"low": 0, "high": 80, "name": "brain"}],
        "body_above": None,
    }
    config = configuration.build(ViewsConfig, tree)
    check_views(config)
    assert config.windows == [Window(0, 80, "brain")]
    assert config.global_views.appearance[0].blur == Chance(1.0, [0.5, 1])
    assert config.body_above is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"windows": []}, "windows"),
        ({"windows": [Window(5, 5)]}, "not below"),
        ({"percentiles": [90.0, 10.0]}, "percentiles"),
        ({"global_views": ViewConfig(count=0)}, "at least 1"),
        ({"global_views": ViewConfig(in_plane_mm=[200, 100])}, "in_plane_mm"),
        ({"global_views": ViewConfig(size=[96, 96])}, "three"),
        ({"global_views": ViewConfig(overlap=2)}, "overlap"),
        ({"global_views": ViewConfig(in_plane_share=[0.5, 1])}, "both"),
        ({"global_views": ViewConfig(appearance=[AppearanceConfig(blur=Chance(1.5))])}, "blur"),
        ({"global_views": ViewConfig(appearance=[AppearanceConfig(one_of=["haze"])])}, "haze"),
        (
            {"global_views": ViewConfig(size=[32, 96, 96], appearance=[AppearanceConfig(turn=[0, 0.5, 0])])},
            "quarter turn",
        ),
    ],
)
def test_mistakes_are_named(change: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_views(dataclasses.replace(ViewsConfig(), **change))

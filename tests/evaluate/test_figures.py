import io
import math

import matplotlib as mpl
import numpy as np
from matplotlib.image import imread

from fmct.evaluate.feature_maps import ColourBasis, FeatureMap
from fmct.evaluate.figures import curve, health_figure, loss_figure, probe_figure, smoothed
from fmct.evaluate.figures_scan import ScanPicture, pca_figure
from fmct.metrics.intervals import Interval
from fmct.probes.comparison import ProbeReport, Row, compare_patients

ROWS = [
    {"step": k, "loss": 5 / k, "loss/dino": 4 / k, "loss/pixel": 1 / k, "grad_norm": 2.0, "rank_me": float(k)}
    for k in range(1, 40)
]


def image(content: bytes) -> np.ndarray:
    assert content.startswith(b"\x89PNG")
    return imread(io.BytesIO(content))


def report(values: int = 8) -> ProbeReport:
    people = [f"p{k}" for k in range(values)]
    scores = [{p: 0.6 + 0.02 * k * (1 + n) for k, p in enumerate(people)} for n in range(3)]
    rows, means = compare_patients([scores[2]], [scores[1]], {"HU": scores[0]})
    return ProbeReport("dense", "AUROC", rows, {}, (), means)


def test_curves_leave_out_what_is_not_a_number() -> None:
    rows = [{"step": 1, "x": 1.0}, {"step": 2, "x": None}, {"step": 3}, {"step": 4, "x": math.nan}, {"step": 5, "x": 3}]
    steps, values = curve(rows, "x")
    np.testing.assert_array_equal(steps, [1, 5])
    np.testing.assert_array_equal(values, [1, 3])
    assert curve([], "x")[0].size == 0


def test_smoothing_is_a_running_mean_cut_at_the_ends() -> None:
    values = np.random.default_rng(0).normal(size=400)
    expected = [values[max(0, k - 5) : k + 6].mean() for k in range(400)]
    np.testing.assert_allclose(smoothed(values), expected)
    np.testing.assert_array_equal(smoothed(values[:6]), values[:6])


def test_figures_are_wide_and_the_same_each_time() -> None:
    timing = [{"step": k, "volumes_per_second": 3.0} for k in range(1, 40)]
    for make in (lambda: loss_figure(ROWS), lambda: health_figure(ROWS, timing), lambda: probe_figure(report())):
        first = make()
        assert image(first).shape[1] >= 1100
        assert image(first)[..., :3].std() > 0.02
        assert make() == first


def test_users_matplotlib_settings_are_neither_used_nor_changed() -> None:
    expected = probe_figure(report())
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30}):
        assert probe_figure(report()) == expected
        assert mpl.rcParams["font.size"] == 30


def test_short_and_odd_results_are_drawn() -> None:
    assert image(loss_figure(ROWS[:1])).size
    assert image(probe_figure(report(3))).size  # no intervals
    nothing = Interval(None, None, None, 0, "t", note="no patient has a value")
    rows = [Row("encoder", nothing), Row("HU", Interval(0.5, None, None, 3, "t"), nothing)]
    assert image(probe_figure(ProbeReport("label", "R²", rows, {}))).size


def test_scan_sheet_shows_colours_in_the_body_only() -> None:
    hu = np.full((20, 24, 16), -1000.0, np.float32)
    hu[4:16, 5:20, 3:13] = 40
    features = np.stack(np.meshgrid(*(np.linspace(0, n, m) for n, m in ((9, 17), (6, 21), (3, 13))), indexing="ij"), -1)
    centres = hu[1:-2, 1:-2, 1:-2]
    found = FeatureMap(features.astype(np.float32), centres, (1.5, 1.5, 1.5), (1.0, 1.0, 1.0))
    mask = np.zeros_like(hu)
    mask[8:12, 8:12, 6:10] = 1
    picture = ScanPicture("thigh", hu, (3.0, 2.0, 2.0), {"encoder": (found, ColourBasis.fit([found]))}, mask)
    sheet = image(pca_figure([picture]))[..., :3]
    half = sheet.shape[0] // 2
    coloured = np.ptp(sheet, axis=-1) > 0.15
    assert 0.05 < coloured[half:].mean() < 0.4
    assert 0 < coloured[:half].mean() < 0.05  # the outline of the mask

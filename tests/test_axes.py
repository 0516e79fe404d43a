import numpy as np
import pytest
from scipy.fft import dct, idct
from scipy.ndimage import gaussian_filter1d

from fmct.axes import Dense, Sparse, blurred, linear_axis, truncated


def test_the_scan_reaches_half_a_voxel_beyond_its_outer_centres() -> None:
    rows = linear_axis(np.array([-0.6, -0.5, 0.0, 1.5, 2.5, 2.6]), 3).matrix.sum(axis=1)
    assert rows.tolist() == [0, 1, 1, 1, 1, 0]
    # A crop ends before the scan does: what lies beyond the crop but inside the scan is the crop's edge.
    assert linear_axis(np.array([3.0]), 3, low=-5, high=9).matrix.tolist() == [[0, 0, 1]]


def test_blur_is_a_renormalised_gaussian() -> None:
    axis = linear_axis(np.linspace(0.5, 20.5, 30), 22)
    signal = np.random.default_rng(1).normal(size=22)
    sampled = axis.matrix @ signal
    expected = gaussian_filter1d(sampled, 1.3, mode="constant", radius=5)
    expected /= gaussian_filter1d(np.ones(30), 1.3, mode="constant", radius=5)
    assert np.allclose(blurred(axis, 1.3).matrix @ signal, expected, atol=1e-5)
    assert blurred(axis, 0.0) is axis


@pytest.mark.parametrize(
    "positions",
    [np.linspace(0, 30, 40), np.linspace(30, 0, 25), np.linspace(-9, 40, 33), np.full(9, -4.0), np.array([3.2, 20, 1])],
    ids=["finer", "flipped", "over both ends", "outside", "in no order"],
)
def test_a_blurred_axis_keeps_every_entry_of_its_rows(positions: np.ndarray) -> None:
    axis = linear_axis(positions, 31)
    sparse, dense = blurred(axis, 0.8), blurred(Dense(axis.matrix, axis.inside), 0.8)
    assert isinstance(sparse, Sparse)
    assert np.array_equal(sparse.matrix, dense.matrix)
    assert sparse.taps.min() >= 0
    assert sparse.taps.max() <= 30


def test_truncation_keeps_the_low_frequencies() -> None:
    axis = linear_axis(np.arange(16.0), 16)
    signal = np.random.default_rng(2).normal(size=16)
    spectrum = dct(signal, norm="ortho")
    spectrum[8:] = 0
    assert np.allclose(truncated(axis, 0.5).matrix @ signal, idct(spectrum, norm="ortho"), atol=1e-5)
    assert np.allclose(truncated(axis, 1.0).matrix @ signal, signal, atol=1e-5)

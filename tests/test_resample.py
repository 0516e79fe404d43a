import threading

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from fmct.axes import Dense, blurred, linear_axis
from fmct.resample import Line, exact_products, resample, sample_box, write_lines


@pytest.mark.parametrize("step", [(0.31, 0.9, 1.7), (-0.5, -1.3, 1.0), (2.0, 0.25, -0.7)])
def test_sample_box_agrees_with_scipy(step: tuple[float, float, float]) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 2000, (20, 41, 37)).astype(np.int16)
    size = (24, 40, 50)
    first = tuple((n - 1) / 2 - s * (m - 1) / 2 for n, s, m in zip(voxels.shape, step, size, strict=True))
    ours = sample_box(torch.from_numpy(voxels), first, step, size, air=-1000.0).numpy()
    places = np.meshgrid(*[f + s * np.arange(n) for f, s, n in zip(first, step, size, strict=True)], indexing="ij")
    expected = map_coordinates(voxels.astype(np.float64), places, order=1, mode="nearest")
    outside = [(p < -0.5) | (p > n - 0.5) for p, n in zip(places, voxels.shape, strict=True)]
    expected[np.any(outside, axis=0)] = -1000
    assert np.any(outside) or max(abs(s) for s in step) < 1.8
    assert np.abs(ours - expected).max() < 1e-2


def test_identity_is_exact() -> None:
    voxels = torch.randint(-1000, 3000, (6, 7, 8), dtype=torch.int16)
    assert torch.equal(sample_box(voxels, (0, 0, 0), (1, 1, 1), (6, 7, 8)), voxels.float())
    assert torch.equal(sample_box(voxels, (5, 6, 7), (-1, -1, -1), (6, 7, 8)), voxels.float().flip(0, 1, 2))


@pytest.mark.parametrize(
    "positions",
    [np.linspace(0, 19, 60), np.linspace(19, 0, 31), np.linspace(-3, 24, 50), np.full(3, -2.0), np.array([19.4])],
    ids=["finer", "flipped", "over both ends", "outside", "edge"],
)
def test_sums_of_pairs_are_those_of_the_product(positions: np.ndarray) -> None:
    voxels = torch.randint(-1000, 3000, (20, 20, 20), dtype=torch.int16)
    axis, same = linear_axis(positions, 20), linear_axis(np.arange(20.0), 20)
    for place in range(3):
        axes = [axis if place == number else same for number in range(3)]
        products = [Dense(one.matrix, one.inside) for one in axes]
        assert torch.allclose(resample(voxels, axes), resample(voxels, products), atol=1e-3)


@pytest.mark.parametrize(
    "positions",
    [np.linspace(0, 19, 60), np.linspace(19, 0, 31), np.linspace(-3, 24, 50), np.full(30, -2.0), np.linspace(9, 9, 40)],
    ids=["finer", "flipped", "over both ends", "outside", "one slice"],
)
@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_lines_are_those_of_the_resampled_slices(positions: np.ndarray, sigma: float) -> None:
    planes = torch.randn(20, 50) * 500
    z = blurred(linear_axis(positions, 20), sigma)
    lines = [Line(1 / 400, 0.4, 0.0, 1.0), Line(-0.5, 3.0, -100.0, 100.0), Line(1.0, 1000.0, -5000.0, 5000.0)]
    resampled = torch.from_numpy(z.matrix) @ planes
    out = torch.empty(3, len(positions), 50)
    write_lines(planes, z, lines, out=out)
    for line, found in zip(lines, out, strict=True):
        expected = (resampled * line.slope + line.bias).clamp(line.low, line.high)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-3 * abs(line.slope))


def test_one_voxel_is_enough() -> None:
    assert sample_box(torch.tensor([[[7]]], dtype=torch.int16), (0, 0, 0), (0.1, 0.1, 0.1), (2, 2, 2)).unique() == 7


def test_neither_autocast_nor_a_lower_matmul_precision_rounds_hu() -> None:
    voxels = torch.randint(-1000, 3000, (20, 40, 40), dtype=torch.int16)
    axes = [linear_axis(np.linspace(1, n - 2, 32), n) for n in voxels.shape]
    plain = resample(voxels, axes)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(resample(voxels, axes), plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    with exact_products(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest"


def test_what_was_resampled_in_inference_mode_does_not_bind_later_calls() -> None:
    voxels = torch.randint(-1000, 3000, (3, 7, 5), dtype=torch.int16)
    axes = [linear_axis(np.arange(float(n)), n) for n in voxels.shape]

    def in_a_fresh_thread(work) -> list:
        found: list = []
        thread = threading.Thread(target=lambda: found.append(work()))  # scratch memory is a thread's own
        thread.start()
        thread.join()
        return found

    def both() -> bool:
        with torch.inference_mode():
            first = resample(voxels, axes).clone()
        return torch.equal(resample(voxels, axes), first)

    assert in_a_fresh_thread(both) == [True]

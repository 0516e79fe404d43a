"""The pyramid: box means that keep every voxel where it is in space."""

import itertools

import numpy as np
import pytest

from fmct import pyramid

STEPS = [step for step in itertools.product((1, 2), repeat=3) if step != (1, 1, 1)]


def slow_reduce(voxels: np.ndarray, step: tuple[int, int, int]) -> np.ndarray:
    """Average block by block, indices beyond the last voxel clamped to it."""
    shape = [-(-n // k) for n, k in zip(voxels.shape, step, strict=True)]
    out = np.zeros(shape, dtype=np.float64)
    for index in np.ndindex(*shape):
        values = []
        for offset in np.ndindex(*step):
            source = [min(i * k + o, n - 1) for i, k, o, n in zip(index, step, offset, voxels.shape, strict=True)]
            values.append(float(voxels[tuple(source)]))
        out[index] = sum(values) / len(values)
    return np.rint(out).astype(voxels.dtype) if voxels.dtype.kind == "i" else out.astype(voxels.dtype)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9), (1, 3, 2), (3, 2, 1)])
def test_reduce_is_the_rounded_block_mean(step, shape):
    generator = np.random.default_rng(0)
    voxels = generator.integers(-32768, 32768, shape).astype(np.int16)
    assert np.array_equal(pyramid.reduce(voxels, step), slow_reduce(voxels, step))
    flat = generator.integers(-3, 4, shape).astype(np.int16)  # many exact halves
    assert np.array_equal(pyramid.reduce(flat, step), slow_reduce(flat, step))
    floats = generator.normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(pyramid.reduce(floats, step), slow_reduce(floats, step), rtol=1e-6)


def test_slabs_do_not_show(monkeypatch):
    voxels = np.random.default_rng(1).integers(-1000, 2000, (13, 17, 19)).astype(np.int16)
    whole = pyramid.reduce(voxels, (2, 2, 2))
    monkeypatch.setattr(pyramid, "_SLAB_VOXELS", 500)
    assert np.array_equal(pyramid.reduce(voxels, (2, 2, 2)), whole)


def test_voxels_that_are_not_contiguous_or_little_are_averaged_too():
    voxels = np.random.default_rng(2).integers(-1000, 2000, (6, 8, 10)).astype(np.int16)
    assert np.array_equal(pyramid.reduce(voxels[:, :, ::-1], (1, 2, 2)), slow_reduce(voxels[:, :, ::-1], (1, 2, 2)))


def test_levels_do_not_drift():
    voxels = np.random.default_rng(3).integers(0, 7, (64, 64, 64)).astype(np.int16)
    last = pyramid.build(voxels, (1, 1, 1))[2][1]
    exact = voxels.reshape(16, 4, 16, 4, 16, 4).mean(axis=(1, 3, 5))
    assert abs(float((last - exact).mean())) < 0.02


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((92, 512, 512), (3.0, 0.78, 0.78), [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32)]),
        ((64, 64, 64), (1.0, 1.0, 1.0), [(1, 1, 1), (2, 2, 2), (4, 4, 4)]),
        ((16, 16, 16), (1.0, 1.0, 1.0), [(1, 1, 1)]),
        ((2, 64, 64), (1.0, 1.0, 1.0), [(1, 1, 1), (1, 2, 2), (1, 4, 4)]),
    ],
)
def test_factors_halve_the_finest_axes_first(shape, spacing, expected):
    assert pyramid.level_factors(shape, spacing) == expected
    for factor, voxels in pyramid.build(np.zeros(shape, dtype=np.int16), spacing):
        assert voxels.shape == tuple(-(-n // f) for n, f in zip(shape, factor, strict=True))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (0.6, 0.9, 2.0)])
def test_a_blob_stays_where_it_is_in_every_level(spacing):
    shape, centre_mm, sigma_mm = (60, 71, 64), np.array([0.45, 0.52, 0.48]), 6.0
    grid = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    centre = centre_mm * [n * s for n, s in zip(shape, spacing, strict=True)]
    blob = 20000 * np.exp(-((grid - centre) ** 2).sum(-1) / (2 * sigma_mm**2))
    for factor, voxels in pyramid.build(blob.astype(np.int16), spacing):
        level_mm = pyramid.level_spacing(spacing, factor)
        if max(level_mm) > sigma_mm:
            break
        weights = voxels.astype(np.float64)
        index = [
            float((weights.sum(tuple({0, 1, 2} - {a})) * np.arange(n)).sum() / weights.sum())
            for a, n in enumerate(voxels.shape)
        ]
        expected = pyramid.level_index(centre / spacing, factor)
        assert np.abs(np.array(index) - expected).max() < 0.1


def test_a_level_is_never_coarser_than_wanted_where_level_0_allows():
    spacing, factors = (3.0, 0.78, 0.78), [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)]
    assert pyramid.choose_level(spacing, factors, (1.0, 1.0, 1.0)) == 0
    assert pyramid.choose_level(spacing, factors, (3.0, 3.2, 3.2)) == 2
    assert pyramid.choose_level(spacing, factors, (3.0, 3.2, 1.6)) == 1
    assert pyramid.choose_level(spacing, factors, (6.0, 6.3, 6.3)) == 3

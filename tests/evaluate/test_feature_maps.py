import numpy as np
import pytest
import torch

from fmct.errors import DataError
from fmct.evaluate.feature_maps import ColourBasis, FeatureMap, feature_map
from fmct.windows import Window

WINDOWS = (Window(-2000, 2000, shift=0, scale=1),)


def patch_means(x: torch.Tensor) -> torch.Tensor:
    """An encoder: the mean of each 4³ patch and its negative, (B, N, 2)."""
    means = torch.nn.functional.avg_pool3d(x, 4).flatten(2).transpose(1, 2)
    return torch.cat([means, -means], dim=2)


@pytest.mark.parametrize("shape", [(30, 25, 27), (12, 12, 12), (13, 31, 14)])
@pytest.mark.parametrize("shifts", [1, 2, 4])
def test_every_cell_is_the_patch_at_its_place(shape: tuple[int, int, int], shifts: int) -> None:
    hu = np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)
    found = feature_map(patch_means, hu, windows=WINDOWS, size=(12, 12, 12), patch=(4, 4, 4), shifts=shifts)
    stride = 4 // shifts
    assert found.features.shape == (*[(n - 4) // stride + 1 for n in shape], 2)
    assert found.step == (stride,) * 3
    assert found.origin == (1.5, 1.5, 1.5)
    for z, y, x in np.ndindex(found.hu.shape):
        start = [k * stride for k in (z, y, x)]
        mean = hu[tuple(slice(s, s + 4) for s in start)].mean()
        np.testing.assert_allclose(found.features[z, y, x], [mean, -mean], atol=2e-3)
        assert found.hu[z, y, x] == pytest.approx(mean, abs=2e-3)


def test_a_scan_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="windows of"):
        feature_map(patch_means, np.zeros((8, 20, 20), np.float32), windows=WINDOWS, size=(12,) * 3, patch=(4,) * 3)


def test_colours_are_the_first_three_principal_components_of_the_body() -> None:
    random = np.random.default_rng(1)
    features = (random.normal(size=(6, 7, 8, 10)) * np.array([9, 5, 3, *[0.1] * 7])).astype(np.float32)
    hu = np.where(random.random((6, 7, 8)) < 0.7, 50.0, -1000.0)
    found = FeatureMap(features, hu, (0, 0, 0), (1, 1, 1))
    basis = ColourBasis.fit([found])
    rows = features[hu > -500]
    vectors = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs(basis.components.T @ vectors.T), np.eye(3), atol=1e-4)
    colours = basis.colours(found)
    assert colours.shape == (6, 7, 8, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    inside = (colours[hu > -500] > 0) & (colours[hu > -500] < 1)
    assert 0.93 < inside.mean() < 0.98
    flipped = ColourBasis.fit([FeatureMap(features[::-1], hu[::-1], (0, 0, 0), (1, 1, 1))])
    np.testing.assert_allclose(flipped.components, basis.components, atol=1e-6)
    with pytest.raises(DataError, match="fewer than four cells"):
        ColourBasis.fit([FeatureMap(features, hu * 0 - 1000, (0, 0, 0), (1, 1, 1))])

import pytest
import torch
from scipy.ndimage import distance_transform_edt

from fmct.errors import ConfigError
from fmct.losses.distance import distance_to, token_spacing


def test_distances_are_those_of_scipy_with_a_spacing_for_each_sample():
    inside = torch.rand(3, 5, 7, 4, generator=torch.Generator().manual_seed(0)) < 0.05
    spacing = token_spacing(torch.tensor([[6.0, 2.5, 2.5], [1.0, 1.0, 1.0], [3.0, 0.7, 4.0]]), 3, inside.device)
    assert inside.flatten(1).any(1).all()
    for found, mask, sampling in zip(distance_to(inside, spacing), inside, spacing.tolist(), strict=True):
        wanted = torch.from_numpy(distance_transform_edt(~mask.numpy(), sampling=sampling)).float()
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_nothing_inside_is_infinitely_far():
    inside = torch.zeros(2, 2, 3, 4, dtype=torch.bool)
    inside[1, 0, 0, 0] = True
    distance = distance_to(inside, token_spacing((1, 1, 1), 2, inside.device))
    assert distance[0].isinf().all()
    assert distance[1, 0, 0, 0] == 0


def test_a_spacing_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"\(2,\)"):
        token_spacing((1.0, 2.0), 1, torch.device("cpu"))

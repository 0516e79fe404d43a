"""Components against a flood fill, and what counts for a volume."""

import numpy as np
import pytest

from fmct.inference.components import components, counted_volume

AFFINE = np.array([[0, 0, -0.8, 50.0], [0, 0.8, 0, -20.0], [3.0, 0, 0, 7.0], [0, 0, 0, 1]])


def flood(mask: np.ndarray) -> list[set[tuple[int, int, int]]]:
    """Return the 26-connected groups of a mask's voxels, by walking from voxel to voxel."""
    left, groups = {tuple(place) for place in np.argwhere(mask).tolist()}, []
    while left:
        group, border = set(), [left.pop()]
        while border:
            z, y, x = border.pop()
            group.add((z, y, x))
            for other in [(z + a, y + b, x + c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)]:
                if other in left:
                    left.remove(other)
                    border.append(other)
        groups.append(group)
    return groups


def test_components_are_those_of_a_flood_fill_with_volume_probability_and_place() -> None:
    probability = np.random.default_rng(3).random((9, 14, 12)) ** 4
    groups = sorted(flood(probability >= 0.4), key=len, reverse=True)
    found = components(probability, AFFINE, threshold=0.4)
    assert [part.voxels for part in found] == [len(group) for group in groups]
    assert [part.number for part in found] == list(range(1, len(groups) + 1))
    by_place = {np.round(np.mean(list(group), axis=0), 9).tobytes(): group for group in groups}
    for part in found:
        centre = np.linalg.solve(AFFINE[:3, :3], np.array(part.centroid_mm) - AFFINE[:3, 3])
        group = by_place[(np.round(centre, 9) + 0.0).tobytes()]
        values = [probability[place] for place in group]
        assert part.volume_mm3 == pytest.approx(len(group) * 0.8 * 0.8 * 3.0)
        assert part.max_probability == pytest.approx(max(values))
        assert part.mean_probability == pytest.approx(np.mean(values))


def test_the_threshold_belongs_to_the_mask_and_an_empty_mask_has_no_component() -> None:
    probability = np.zeros((3, 3, 3))
    probability[1, 1, 1] = 0.5
    assert len(components(probability, np.eye(4), threshold=0.5)) == 1
    assert components(probability, np.eye(4), threshold=0.51) == []


def test_only_components_that_reach_both_limits_count() -> None:
    probability = np.zeros((5, 5, 20))
    probability[1:3, 1:3, 1:3] = 0.9  # 8 mm³
    probability[1:3, 1:3, 6:9] = 0.6  # 12 mm³
    probability[4, 4, 15] = 1.0  # 1 mm³
    found = components(probability, np.eye(4), threshold=0.5)
    assert counted_volume(found, probability=0.5, min_volume_mm3=8.0) == pytest.approx(20)
    assert counted_volume(found, probability=0.9, min_volume_mm3=8.0) == pytest.approx(8)
    assert counted_volume(found, probability=0.5, min_volume_mm3=0.0) == pytest.approx(21)
    assert counted_volume([], probability=0.5, min_volume_mm3=0.0) == 0

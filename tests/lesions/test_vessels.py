import numpy as np
import pytest
from scipy import ndimage

from fmct.errors import ConfigError, DataError
from fmct.lesions.vessels import VesselRules, filled_in, remove_vessels, smaller_cluster, vesselness
from tests.lesions.brains import ball, tube

SHAPE, SPACING = (16, 28, 28), (1.0, 1.0, 1.0)
BALL = ball(SHAPE, SPACING, 2.5, (0, -6, -6))
TUBE = tube(SHAPE, SPACING, 1.2, (0, 6))


def image(background: float = 100.0) -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, 1, SHAPE)
    return background + noise - 60 * (BALL | TUBE)


def brain() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:-2, 2:-2, 2:-2] = True
    return mask


@pytest.mark.parametrize("mode", ["modern", "paper"])
@pytest.mark.parametrize(
    ("scale", "kind"), [(1.0, np.float32), (1000.0, np.float32), (1.0, np.int16), (1 / 160, float)]
)
def test_a_line_is_removed_and_a_ball_kept_at_any_scale(mode: str, scale: float, kind: type) -> None:
    """B.13.10: also x1000 and int16 (B-D6 depends on the scale); no voxel outside the mask changes."""
    values, mask = (image() * scale).astype(kind), brain()
    found, vessels = remove_vessels(values, mask, SPACING, sign="dark", rules=VesselRules(mode=mode))
    assert vessels[TUBE & mask].mean() > 0.95
    assert not vessels[BALL].any()
    assert found[TUBE & mask].mean() > 95 * scale
    assert found[BALL].mean() < 45 * scale
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found[~mask], values[~mask])
    np.testing.assert_array_equal(found[~vessels], values[~vessels])
    assert not vessels[~mask].any()


def test_bright_vessels_have_the_other_sign() -> None:
    values = 200 - image()
    found, vessels = remove_vessels(values, brain(), SPACING, sign="bright")
    assert vessels[TUBE & brain()].mean() > 0.95
    assert found[BALL].min() > 150
    assert not remove_vessels(values, brain(), SPACING, sign="dark")[1][TUBE].any()


def test_widths_are_millimetres() -> None:
    """A tube and a ball keep their verdicts on slices three times as thick as the voxels are wide."""
    shape, spacing = (13, 41, 41), (2.4, 0.8, 0.8)
    line, round_one = tube(shape, spacing, 1.3, (0, 7.2)), ball(shape, spacing, 2.6, (0, -7.2, 0))
    values = 100.0 - 60 * (line | round_one)
    _, vessels = remove_vessels(values, np.ones(shape, bool), spacing, sign="dark")
    assert vessels[line].mean() > 0.8
    assert not vessels[round_one].any()


def test_vesselness_is_frangis_by_eigenvalues_of_one_voxel_at_a_time() -> None:
    values = np.random.default_rng(0).normal(size=(6, 7, 5)).astype(np.float32)
    spacing, width = (1.5, 1.0, 0.8), 1.1
    smooth = np.pad(ndimage.gaussian_filter(values, [width / s for s in spacing], mode="nearest"), 1, mode="edge")
    eigenvalues = np.empty((*values.shape, 3))
    for place in np.ndindex(values.shape):
        centre, matrix = np.array(place) + 1, np.empty((3, 3))
        for a in range(3):
            for b in range(3):
                u, v = np.eye(3, dtype=int)[a], np.eye(3, dtype=int)[b]
                if a == b:
                    bent = smooth[tuple(centre + u)] + smooth[tuple(centre - u)] - 2 * smooth[tuple(centre)]
                else:
                    bent = (
                        smooth[tuple(centre + u + v)]
                        + smooth[tuple(centre - u - v)]
                        - smooth[tuple(centre + u - v)]
                        - smooth[tuple(centre - u + v)]
                    ) / 4
                matrix[a, b] = width**2 * bent / (spacing[a] * spacing[b])
        eigenvalues[place] = sorted(np.linalg.eigvalsh(matrix), key=abs)
    norms = np.sqrt((eigenvalues**2).sum(-1))
    one, two, three = np.moveaxis(eigenvalues, -1, 0)
    plate, blob = np.abs(two / three), np.abs(one) / np.sqrt(np.abs(two * three))
    expected = (1 - np.exp(-2 * plate**2)) * np.exp(-2 * blob**2) * (1 - np.exp(-2 * (norms / norms.max()) ** 2))
    expected[(two > 0) | (three > 0)] = 0
    found = vesselness(values, spacing, [width], np.ones(values.shape, bool))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (vesselness(np.zeros((4, 4, 4)), (1, 1, 1), [1.0], np.ones((4, 4, 4), bool)) == 0).all()


def test_filling_goes_inwards_voxel_by_voxel() -> None:
    """Each round is the mean of the known neighbours, by the inverse of their distance in mm."""
    values, spacing = np.random.default_rng(1).normal(size=(7, 8, 9)), (2.0, 1.0, 1.0)
    mask = np.ones(values.shape, dtype=bool)
    mask[:, :, 0] = False
    hole = np.zeros(values.shape, dtype=bool)
    hole[2:5, 2:6, 1:6] = True
    expected, known = values.copy(), mask & ~hole
    while (hole & ~known).any():
        ring = {}
        for place in np.argwhere(hole & ~known):
            total = weight = 0.0
            for step in np.ndindex(3, 3, 3):
                near = place + np.array(step) - 1
                if (near >= 0).all() and (near < values.shape).all() and known[tuple(near)]:
                    share = 1 / np.linalg.norm((near - place) * spacing)
                    total, weight = total + share * expected[tuple(near)], weight + share
            if weight:
                ring[tuple(place)] = total / weight
        for place, value in ring.items():
            expected[place], known[place] = value, True
    np.testing.assert_allclose(filled_in(values, hole, mask, spacing), expected, rtol=1e-12)


def test_filling_ends_when_everything_is_vessel() -> None:
    """B.13.10: inpainting terminates when the mask covers everything; nothing known leaves the values as they are."""
    values = np.random.default_rng(1).normal(size=(5, 5, 5))
    everything = np.ones(values.shape, dtype=bool)
    np.testing.assert_array_equal(filled_in(values, everything, everything, SPACING), values)


def test_two_clusters_are_those_of_k_means_and_the_smaller_is_told() -> None:
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(0.1, 0.02, (50, 2)), random.normal(0.8, 0.05, (9, 2))])
    assert smaller_cluster(features).tolist() == [False] * 50 + [True] * 9
    assert smaller_cluster(1 - features).tolist() == [False] * 50 + [True] * 9
    assert not smaller_cluster(np.ones((8, 2))).any()


def test_a_mask_that_cannot_be_is_said() -> None:
    """B.13.14 and 26: an empty brain mask, one on another grid, NaN in the brain, an unknown mode."""
    for mask, values, error in (
        (np.zeros(SHAPE, bool), image(), "brain mask is empty"),
        (np.ones((3, 3, 3), bool), image(), "another grid"),
        (brain(), np.full(SHAPE, np.nan), "NaN"),
    ):
        with pytest.raises(DataError, match=error):
            remove_vessels(values, mask, SPACING, sign="dark")
    with pytest.raises(ConfigError, match="lesion_sign"):
        remove_vessels(image(), brain(), SPACING, sign="")
    with pytest.raises(ConfigError, match="mode"):
        VesselRules(mode="sk013")
    with pytest.raises(ConfigError, match="sigma_mm"):
        VesselRules(sigma_mm=[])

import numpy as np
import pytest
from scipy import ndimage

from fmct.errors import ConfigError, DataError
from fmct.lesions.symmetry import symmetry_map
from tests.lesions.brains import ball, grid

RNG = np.random.default_rng(0)


def slow_map(
    values: np.ndarray, spacing: tuple[float, ...], radii: list[float], sign: str, alpha: float = 2.0
) -> np.ndarray:
    """Return Loy and Zelinsky's transform voxel by voxel, as their paper writes it."""
    gradient = np.stack(np.gradient(values.astype(np.float32), *spacing), axis=-1)
    total = np.zeros(values.shape)
    for radius in radii:
        count, strength = np.zeros(values.shape), np.zeros(values.shape)
        for place in np.ndindex(values.shape):
            norm = np.linalg.norm(gradient[place])
            if norm == 0:
                continue
            step = gradient[place] / norm * radius / np.asarray(spacing) * (-1 if sign == "dark" else 1)
            target = tuple(np.asarray(place) + np.rint(step.astype(np.float32)).astype(int))
            if all(0 <= t < n for t, n in zip(target, values.shape, strict=True)):
                count[target] += 1
                strength[target] += norm
        symmetry = (count / count.max()) ** alpha * strength / strength.max()
        total += ndimage.gaussian_filter(symmetry, [0.25 * radius / step for step in spacing], truncate=3.0)
    return total / total.max()


@pytest.mark.parametrize(
    ("shape", "spacing"), [((9, 11, 10), (1.0, 1.0, 1.0)), ((6, 12, 11), (2.5, 0.8, 0.8)), ((15, 14), (1.0, 0.7))]
)
@pytest.mark.parametrize("sign", ["dark", "bright"])
def test_map_is_the_voxel_by_voxel_transform(shape: tuple[int, ...], spacing: tuple[float, ...], sign: str) -> None:
    values = RNG.normal(100, 10, shape).astype(np.float32)
    found = symmetry_map(values, spacing, radii_mm=[1.5, 2.3], sign=sign)
    np.testing.assert_allclose(found, slow_map(values, spacing, [1.5, 2.3], sign), atol=2e-4)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((21, 21), (1.0, 1.0)), ((19, 19, 19), (1.0, 1.0, 1.0)), ((9, 25, 25), (2.0, 0.7, 0.7))]
)
def test_a_disc_or_ball_peaks_at_its_centre_and_only_with_its_own_sign(
    shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    """B.13.9: the peak of a dark ball is its centre at matching radius; a bright one has next to nothing there."""
    radius, middle = 3.0, tuple(n // 2 for n in shape)
    distance = np.sqrt(sum(axis**2 for axis in grid(shape, spacing)))
    dark = 100 - 60 / (1 + np.exp(4 * (distance - radius)))
    for image, sign, other in ((dark, "dark", "bright"), (200 - dark, "bright", "dark")):
        found = symmetry_map(image, spacing, radii_mm=[radius], sign=sign)
        assert np.unravel_index(found.argmax(), shape) == middle
        assert found.max() == 1.0
        assert symmetry_map(image, spacing, radii_mm=[radius], sign=other)[middle] < 0.02


def test_anisotropic_spacing_is_honoured() -> None:
    """B.13.9: a ball in mm on thick slices peaks at its centre; taken for cubes of voxels it does so no more."""
    shape, spacing = (11, 41, 41), (3.0, 0.8, 0.8)
    distance = np.sqrt(sum(axis**2 for axis in grid(shape, spacing)))
    image = 100 - 60 / (1 + np.exp(2 * (distance - 5.0)))
    votes = symmetry_map(image, spacing, radii_mm=[5.0], sign="dark", blur=0.1)
    wrong = symmetry_map(image, (1.0, 1.0, 1.0), radii_mm=[5.0], sign="dark", blur=0.1)
    middle = (5, 20, 20)
    assert np.unravel_index(votes.argmax(), shape) == middle
    near = ball(shape, spacing, 2.5)
    assert votes[near].sum() / votes.sum() > 0.95
    assert wrong[near].sum() / wrong.sum() < 0.75


@pytest.mark.parametrize("scale", [1000.0, 1 / 160])
def test_scale_of_intensities_does_not_matter(scale: float) -> None:
    """B.13.9: the same map at a thousand times the intensity and on [0, 1]; B-D7 gives NaN there."""
    image = 100 - 60 * ball((13, 13, 13), (1.0,) * 3, 3.0) + RNG.normal(0, 1, (13, 13, 13))
    first = symmetry_map(image, (1.0,) * 3, radii_mm=[2, 3], sign="dark")
    np.testing.assert_allclose(symmetry_map(image * scale, (1.0,) * 3, radii_mm=[2, 3], sign="dark"), first, atol=1e-3)
    counts = symmetry_map(np.rint(image).astype(np.int16), (1.0,) * 3, radii_mm=[3], sign="dark")
    assert np.unravel_index(counts.argmax(), image.shape) == (6, 6, 6)


def test_a_constant_image_has_no_symmetry() -> None:
    """B.13.9: no NaN."""
    assert (symmetry_map(np.full((5, 6, 7), 3.0), (1, 1, 1), radii_mm=[2], sign="dark") == 0).all()


def test_only_the_mask_votes() -> None:
    image = (
        100 - 60 * ball((15, 15, 30), (1.0,) * 3, 3.0, (0, 0, -7)) - 90 * ball((15, 15, 30), (1.0,) * 3, 3.0, (0, 0, 7))
    )
    mask = np.zeros(image.shape, dtype=bool)
    mask[..., :15] = True
    found = symmetry_map(image, (1.0,) * 3, radii_mm=[3], sign="dark", mask=mask)
    assert found[~mask].max() == 0
    assert found[..., :15].max() == 1.0


def test_what_cannot_be_is_said() -> None:
    image = RNG.normal(size=(5, 5, 5))
    for arguments, error in (
        ({"sign": "grey"}, "lesion_sign"),
        ({"sign": ""}, "none is assumed"),
        ({"radii_mm": [0.0]}, "radii_mm"),
        ({"radii_mm": []}, "radii_mm"),
    ):
        with pytest.raises(ConfigError, match=error):
            symmetry_map(image, (1, 1, 1), **{"radii_mm": [2.0], "sign": "dark", **arguments})
    with pytest.raises(DataError, match="NaN"):
        symmetry_map(np.where(image > 1, np.nan, image), (1, 1, 1), radii_mm=[2], sign="dark")
    with pytest.raises(DataError, match="another grid"):
        symmetry_map(image, (1, 1, 1), radii_mm=[2], sign="dark", mask=np.ones((5, 5, 4), bool))
    with pytest.raises(DataError, match="axes"):
        symmetry_map(image, (1, 1), radii_mm=[2], sign="dark")

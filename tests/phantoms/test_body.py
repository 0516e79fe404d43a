import numpy as np

from fmct.phantoms import body as phantom


def test_a_body_is_seeded_canonical_and_looks_like_ct() -> None:
    volume = phantom.body(1, (60, 90, 100), (5.0, 4.0, 4.0))
    assert volume.orientation == "SPL"
    assert np.allclose(volume.spacing, (5, 4, 4))
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, phantom.body(1, (60, 90, 100), (5.0, 4.0, 4.0)).voxels)
    assert not np.array_equal(volume.voxels, phantom.body(2, (60, 90, 100), (5.0, 4.0, 4.0)).voxels)
    for low, high, least in (
        (-1100, -950, 0.2),
        (-900, -700, 0.03),
        (-150, -50, 0.05),
        (20, 100, 0.1),
        (500, 1200, 0.002),
    ):
        assert ((volume.voxels > low) & (volume.voxels < high)).mean() > least
    # Lungs lie in the superior half, the spine in the posterior one.
    lungs = (volume.voxels > -900) & (volume.voxels < -750)
    assert lungs[30:].sum() > 3 * lungs[:30].sum()
    bone = volume.voxels[:20] > 600
    assert bone[:, 45:].sum() > 10 * max(bone[:, :45].sum(), 1)


def test_the_same_seed_is_the_same_body_on_another_grid() -> None:
    fine = phantom.body(4, (40, 80, 80), (4.0, 4.0, 4.0), noise_hu=0).voxels
    coarse = phantom.body(4, (20, 40, 40), (8.0, 8.0, 8.0), noise_hu=0).voxels
    means = fine.reshape(20, 2, 40, 2, 40, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(means.ravel(), coarse.ravel())[0, 1] > 0.97


def test_blobs_lie_at_their_world_points_on_an_oblique_grid() -> None:
    affine = phantom.axial_affine((30, 40, 44), (3.0, 1.5, 1.2))
    angle = np.radians(20)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3] = rotation @ affine[:3]
    points = np.array([[6.0, -8.0, 15.0], [-9.0, 7.0, -14.0]])
    for point in points:
        volume = phantom.blobs(point, (30, 40, 44), affine, 4.0)
        weight = volume.voxels.astype(float)
        index = np.meshgrid(*[np.arange(n) for n in volume.shape], indexing="ij")
        centre = np.array([(weight * i).sum() / weight.sum() for i in index])
        assert np.abs(centre - volume.index(point)).max() < 0.02
    both = phantom.blobs(points, (30, 40, 44), affine, 4.0).voxels
    assert both.max() <= 1500
    assert both.astype(int).sum() > 1.9 * weight.sum()

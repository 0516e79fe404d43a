import numpy as np
import pytest

from fmct.errors import DataError
from fmct.phantoms.body import axial_affine
from fmct.registration.pair_quality import dice
from fmct.registration.warping import check_same_grid, same_grid, signed_distance, warp, warp_mask
from fmct.volume import Volume


def volume(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(voxels.astype(np.float32), affine, "PT", "SUV")


def oblique(shape: tuple[int, int, int], spacing: float, degrees: float) -> np.ndarray:
    affine = axial_affine(shape, (spacing,) * 3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = affine.copy()
    turned[:3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3]
    return turned


def world_ramp(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return (index @ affine[:3, :3].T + affine[:3, 3]) @ [1.0, -0.5, 2.0] + 7


def test_g1_equal_grids_are_left_alone_and_unequal_ones_are_named() -> None:
    affine = axial_affine((6, 7, 8), (3, 2, 2))
    a = volume(np.arange(336).reshape(6, 7, 8), affine)
    assert warp(a, a).volume is a
    check_same_grid(a, a, "pair")
    nudged = affine.copy()
    nudged[0, 3] += 0.01
    b = volume(np.zeros((6, 7, 8)), nudged)
    assert not same_grid(a.shape, a.affine, b.shape, b.affine)
    with pytest.raises(DataError, match=r"shape \(6, 7, 8\).*affine.*shape \(6, 7, 8\).*affine"):
        check_same_grid(a, b, "pair")


def test_g1_a_constant_stays_constant_and_a_ramp_is_reproduced() -> None:
    fixed = volume(np.zeros((8, 12, 12)), axial_affine((8, 12, 12), (3.0, 2.0, 2.0)))
    moving_shape = (30, 30, 30)
    for degrees in (0.0, 25.0):
        affine = oblique(moving_shape, 2.5, degrees)
        flat = warp(volume(np.full(moving_shape, 4.5), affine), fixed)
        assert flat.valid.all()
        assert np.allclose(flat.volume.voxels, 4.5, atol=1e-6)
        ramp = warp(volume(world_ramp(moving_shape, affine), affine), fixed)
        expected = world_ramp(fixed.shape, fixed.affine)
        assert np.abs(ramp.volume.voxels - expected).max() < 1e-3


def test_g1_outside_the_moving_field_of_view_is_air_and_not_valid() -> None:
    fixed = Volume(np.zeros((4, 4, 10), np.int16), axial_affine((4, 4, 10), (2, 2, 2)))
    moving = Volume(np.full((4, 4, 5), 30, np.int16), axial_affine((4, 4, 5), (2, 2, 2)))
    found = warp(moving, fixed)
    assert found.volume.voxels.dtype == np.int16
    # The middles of both grids meet: 5 of 10 columns, one of them by half a voxel on each side.
    assert found.valid[0, 0].tolist() == [False] * 2 + [True] * 6 + [False] * 2
    assert set(np.unique(found.volume.voxels[found.valid])) == {30}
    assert set(np.unique(found.volume.voxels[~found.valid])) == {-1000}


def test_g5_flipped_and_permuted_axes_of_one_phase_are_caught_by_the_affine() -> None:
    shape = (10, 12, 14)
    fixed = volume(np.zeros(shape), axial_affine(shape, (3, 2, 2)))
    fixed.voxels[2, 3, 11] = 100  # a marker, off every centre
    for orientation in ("IAR", "PSL", "RIA"):
        turned = fixed.oriented(orientation)
        assert turned.shape != fixed.shape or not np.array_equal(turned.voxels, fixed.voxels)
        assert np.allclose(warp(turned, fixed).volume.voxels, fixed.voxels, atol=1e-3)


def test_a_finer_scan_is_averaged_before_it_is_sampled() -> None:
    fine = np.zeros((32, 32, 32), np.float32)
    fine[::2] = 2.0
    found = warp(
        volume(fine, axial_affine(fine.shape, (1, 1, 1))), volume(np.zeros((8, 8, 8)), axial_affine((8,) * 3, (4,) * 3))
    )
    assert np.allclose(found.volume.voxels, 1.0, atol=1e-5)


def test_a_displacement_points_from_the_fixed_scan_into_the_moving_one_in_ras() -> None:
    affine = axial_affine((9, 9, 9), (2, 2, 2))
    moving = volume(np.zeros((9, 9, 9)), affine)
    moving.voxels[6, 4, 3] = 1
    field = np.zeros((9, 9, 9, 3), np.float32)
    field[:] = moving.world((6, 4, 3)) - moving.world((4, 4, 4))  # 4 mm up, 2 mm right
    assert field[0, 0, 0].tolist() == [2, 0, 4]
    assert np.argwhere(warp(moving, moving, field).volume.voxels > 0.5).tolist() == [[4, 4, 4]]
    with pytest.raises(DataError, match="does not belong"):
        warp(moving, moving, field[:5])


def test_a_thin_clot_comes_over_truer_than_by_nearest_neighbour() -> None:
    shape = (24, 24, 24)
    along = np.array([0.3, 0.8, 0.52])

    def rod(affine: np.ndarray) -> np.ndarray:
        place = np.stack(np.meshgrid(*(np.arange(24.0) for _ in range(3)), indexing="ij"), -1)
        world = place @ affine[:3, :3].T + affine[:3, 3]
        length = world @ along / np.linalg.norm(along)
        away = np.linalg.norm(world - length[..., None] * along / np.linalg.norm(along), axis=-1)
        return (away <= 1.3) & (np.abs(length) < 9)

    mask = Volume(rod(axial_affine(shape, (1, 1, 1))).astype(np.float32), axial_affine(shape, (1, 1, 1)), "mask")
    turned = oblique(shape, 1.0, 20.0)
    grid = Volume(np.zeros(shape, np.float32), turned)
    there = np.rint(mask.index(grid.world(np.argwhere(np.ones(shape))))).astype(int).clip(0, 23)
    truth, nearest = rod(turned), mask.voxels[tuple(there.T)].reshape(shape)
    assert truth.sum() > 60
    for by in ("probability", "distance"):
        assert (dice(warp_mask(mask, grid, by=by).voxels, truth) or 0) > (dice(nearest, truth) or 0)


def test_masks_keep_their_volume_and_stay_binary() -> None:
    affine = axial_affine((20, 20, 20), (2, 2, 2))
    index = np.stack(np.meshgrid(*(np.arange(20.0) for _ in range(3)), indexing="ij"), -1) - 9.5
    ball = Volume((np.linalg.norm(index, axis=-1) < 6).astype(np.float32), affine, "mask", "fraction")
    grid = Volume(np.zeros((12, 18, 18), np.float32), axial_affine((12, 18, 18), (3, 2, 2)))
    for by in ("probability", "distance"):
        moved = warp_mask(ball, grid, by=by)
        assert set(np.unique(moved.voxels)) == {0, 1}
        assert abs(moved.voxels.sum() * 12 / (ball.voxels.sum() * 8) - 1) < 0.12
    assert not warp_mask(Volume(np.zeros_like(ball.voxels), affine, "mask"), grid, by="distance").voxels.any()
    with pytest.raises(DataError, match="probability or distance"):
        warp_mask(ball, grid, by="nearest")


def test_signed_distance_is_zero_halfway_between_inside_and_outside() -> None:
    line = np.zeros((1, 1, 9), bool)
    line[0, 0, 3:6] = True
    assert signed_distance(line, (2, 2, 2))[0, 0].tolist() == [-5, -3, -1, 1, 3, 1, -1, -3, -5]

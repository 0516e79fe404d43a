"""Stack geometry and its mending, against slow direct references."""

import numpy as np
import pytest

from fmct.io.mend import regularize
from fmct.io.policy import ReadPolicy
from fmct.io.stack import Stack, common_step, defects, distinct_steps, slice_order


def tilted_stack(heights, degrees=0.0, spacing=(1.5, 1.0)):
    heights = np.asarray(heights, dtype=float)
    positions = np.tile([3.0, -4.0, 0.0], (len(heights), 1))
    positions[:, 2] += heights
    positions[:, 1] += heights * np.tan(np.radians(degrees))
    return Stack(positions, np.array([0.0, spacing[0], 0.0]), np.array([spacing[1], 0.0, 0.0]))


def reference(voxels, stack, points, fill):
    """Return the value at each RAS point: bilinear in the two enclosing slices at their own places, then linear."""
    values = []
    for point in points:
        heights = stack.heights
        height = float(point @ stack.normal)
        low = max(k for k in range(len(heights) - 1) if heights[k] <= height + 1e-9)
        weight = (height - heights[low]) / (heights[low + 1] - heights[low])
        pair = []
        for k in (low, low + 1):
            within = point - stack.positions[k]
            row = within @ stack.y_step / (stack.y_step @ stack.y_step)
            column = within @ stack.x_step / (stack.x_step @ stack.x_step)
            pair.append(bilinear(voxels[k], row, column, fill))
        values.append((1 - weight) * pair[0] + weight * pair[1])
    return np.array(values)


def bilinear(plane, row, column, fill):
    rows, columns = plane.shape
    if not (-1e-6 <= row <= rows - 1 + 1e-6 and -1e-6 <= column <= columns - 1 + 1e-6):
        return np.nan  # the last half pixel and the outside are compared elsewhere
    r, c = min(int(max(row, 0)), rows - 2), min(int(max(column, 0)), columns - 2)
    a, b = row - r, column - c
    top = (1 - b) * plane[r, c] + b * plane[r, c + 1]
    bottom = (1 - b) * plane[r + 1, c] + b * plane[r + 1, c + 1]
    return (1 - a) * top + a * bottom


@pytest.mark.parametrize("degrees", [0.0, 18.5, -30.0])
def test_every_voxel_is_what_the_slices_say_at_its_place(degrees):
    heights = np.cumsum([0, 3, 3, 3, 3, 1, 5, 5, 5, 5])
    stack = tilted_stack(heights, degrees)
    voxels = np.random.default_rng(0).normal(0, 300, (10, 12, 9)).astype(np.float32)
    mended, affine = regularize(voxels, stack, fill=-1000.0)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in mended.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    points = np.clip(points, None, [np.inf, np.inf, heights[-1] - 1e-9])
    expected = reference(voxels, stack, points, -1000.0)
    inside = np.isfinite(expected)
    assert inside.mean() > 0.3
    assert np.abs(mended.reshape(-1)[inside] - expected[inside]).max() < 0.01


def test_the_grid_holds_every_slice_and_is_orthogonal():
    stack = tilted_stack(np.arange(10) * 4.0, 20.0)
    voxels = np.full((10, 12, 9), 500, dtype=np.int16)
    mended, affine = regularize(voxels, stack, fill=-1000)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert mended.dtype == np.int16
    ends = affine[:3, 3] + affine[:3, :3] @ (np.array(mended.shape) - 1)
    assert ends[2] == pytest.approx(36.0)
    assert ends[1] >= stack.positions[-1][1] + 11 * 1.5 - 0.02
    assert (mended == 500).sum() >= 0.95 * voxels.size
    assert (mended == -1000).any()


def test_the_tilt_is_measured_to_a_hundredth_of_a_degree():
    assert tilted_stack(np.arange(10.0), 18.5).tilt_degrees == pytest.approx(18.5, abs=1e-6)
    assert tilted_stack(np.arange(10.0), -7.25).tilt_degrees == pytest.approx(7.25, abs=1e-6)
    assert set(defects(tilted_stack(np.arange(10.0), 0.1), ReadPolicy())) == set()
    assert set(defects(tilted_stack(np.arange(10.0), 0.4), ReadPolicy())) == {"gantry-tilt"}


def test_left_handed_grids_are_not_tilted():
    stack = Stack.from_affine(np.diag([2.0, 1.0, 1.0, 1.0])[:, [0, 1, 2, 3]], 9)
    mirrored = Stack(stack.positions, stack.y_step, -stack.x_step)
    assert stack.tilt_degrees == pytest.approx(0.0)
    assert mirrored.tilt_degrees == pytest.approx(0.0)
    assert (np.diff(mirrored.heights) > 0).all()


def test_steps_are_grouped_and_the_finest_common_one_is_found():
    steps = np.array([4.22] * 13 + [1.14] + [7.38] * 13)
    assert distinct_steps(steps) == [(1.14, 1), (4.22, 13), (7.38, 13)]
    assert common_step(steps) == pytest.approx(4.22)
    assert common_step(np.array([2.0] * 10)) == 2.0


def test_slices_are_ordered_along_the_normal():
    positions = np.array([[0, 0, 4.0], [0, 0, 0.0], [0, 0, 2.0]])
    x, y = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    assert slice_order(positions, y, x).tolist() == [1, 2, 0]
    assert slice_order(positions, -y, x).tolist() == [0, 2, 1]

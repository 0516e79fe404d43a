"""Puts sheared or irregularly placed slices on a regular orthogonal grid, in physical space (linear).

The grid keeps the rows and columns of the slices and stacks along their normal. Each source slice is resampled within
its plane from where it truly lies (this undoes a gantry tilt), and each output plane is the linear blend of the two
source slices that enclose it. The first and the last plane are the first and the last slice; the field of view grows
so that no slice is cut, and what no slice covers is `fill`.
"""

import numpy as np
import SimpleITK as sitk

from fmct.io.stack import Stack, common_step


def regularize(voxels: np.ndarray, stack: Stack, *, fill: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (voxels, affine) of a stack (K, H, W) on a regular grid: same dtype, affine (z, y, x) → RAS mm.

    The distance of the planes is the smallest common distance of the slices, fitted so that the grid ends on the
    last slice. Integers are rounded to nearest.
    """
    heights = stack.heights
    length = float(heights[-1] - heights[0])
    planes = max(2, round(length / common_step(np.diff(heights))) + 1)
    targets = heights[0] + length * np.arange(planes) / (planes - 1)
    frame = _Frame(voxels.shape[1:], stack, fill)
    result = np.empty((planes, *frame.size), dtype=voxels.dtype)
    placed: dict[int, np.ndarray] = {}
    for number, target in enumerate(targets):
        low = int(np.clip(np.searchsorted(heights, target, side="right") - 1, 0, len(heights) - 2))
        weight = float(np.clip((target - heights[low]) / (heights[low + 1] - heights[low]), 0.0, 1.0))
        for k in (low, low + 1):
            if k not in placed:
                placed[k] = frame.place(voxels[k], k)
        placed = {k: plane for k, plane in placed.items() if k >= low}
        blend = placed[low] + np.float32(weight) * (placed[low + 1] - placed[low])
        result[number] = np.rint(blend) if voxels.dtype.kind in "iu" else blend
    affine = np.eye(4)
    affine[:3, 0] = stack.normal * (length / (planes - 1))
    affine[:3, 1], affine[:3, 2] = stack.y_step, stack.x_step
    affine[:3, 3] = frame.origin
    return result, affine


class _Frame:
    """The common plane grid: where each slice lies within its plane, and the rectangle that holds them all."""

    def __init__(self, shape: tuple[int, ...], stack: Stack, fill: float) -> None:
        self._fill = fill
        self._spacing = np.array([np.linalg.norm(stack.y_step), np.linalg.norm(stack.x_step)])
        axes = np.stack([stack.y_step, stack.x_step]) / self._spacing[:, None]
        self._offsets = (stack.positions - stack.positions[0]) @ axes.T
        low, high = self._offsets.min(axis=0), self._offsets.max(axis=0)
        # Slack for rounding in the headers: less than a hundredth of a pixel does not add a row.
        extra = np.ceil((high - low) / self._spacing - 0.01).astype(int)
        self.size = (int(shape[0] + extra[0]), int(shape[1] + extra[1]))
        self._low = low
        self.origin = stack.positions[0] + low @ axes

    def place(self, plane: np.ndarray, number: int) -> np.ndarray:
        """Return one slice (H, W) on the common grid, float32."""
        image = sitk.GetImageFromArray(plane.astype(np.float32))
        image.SetSpacing([float(s) for s in self._spacing[::-1]])
        image.SetOrigin([float(o) for o in self._offsets[number][::-1]])
        reference = sitk.Image([self.size[1], self.size[0]], sitk.sitkFloat32)
        reference.SetSpacing(image.GetSpacing())
        reference.SetOrigin([float(o) for o in self._low[::-1]])
        moved = sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, self._fill)
        return sitk.GetArrayFromImage(moved)

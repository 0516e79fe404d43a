"""Volume, the one medical type: voxels on a known grid in millimetres."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fmct.errors import GeometryError

CANONICAL = "SPL"
AIR_HU = -1000
UNITS = {"CT": "HU", "PT": "SUV", "MR": "arbitrary"}
_POSITIVE, _NEGATIVE = "RAS", "LPI"


@dataclass(frozen=True)
class Volume:
    """Voxels on a regular grid.

    voxels: (D, H, W), int16 HU when the modality is CT, float32 otherwise. affine: (4, 4) float64, voxel index
    (z, y, x) → RAS world in mm. facts: technical tags without identity (kVp, kernel, slice thickness in mm…).
    """

    voxels: np.ndarray
    affine: np.ndarray
    modality: str = "CT"
    units: str = "HU"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3:
            raise GeometryError(f"a volume has three axes (z, y, x); got an array of shape {self.voxels.shape}.")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise GeometryError(f"a volume needs a finite 4 × 4 affine; got {self.affine.tolist()}.")
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise GeometryError(f"the affine {self.affine.tolist()} is singular: two voxel axes point the same way.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of voxels along (z, y, x)."""
        return self.voxels.shape  # type: ignore[return-value]

    @property
    def spacing(self) -> np.ndarray:
        """The distance of neighbouring voxels along (z, y, x) in mm, (3,) float64."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def orientation(self) -> str:
        """Three letters: where each voxel axis (z, y, x) points, by its largest world component, such as SPL."""
        return orientation_of(self.affine)

    def world(self, index: np.ndarray | Sequence[float]) -> np.ndarray:
        """Return the RAS position in mm, (..., 3), of voxel indices (..., 3) in (z, y, x)."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world: np.ndarray | Sequence[float]) -> np.ndarray:
        """Return the fractional voxel index (..., 3) in (z, y, x) of RAS positions (..., 3) in mm."""
        offset = np.asarray(world, dtype=np.float64) - self.affine[:3, 3]
        return np.linalg.solve(self.affine[:3, :3], offset[..., None])[..., 0]

    def oriented(self, orientation: str = CANONICAL) -> "Volume":
        """Return this volume with its axes permuted and flipped to `orientation`; no voxel value changes."""
        order, flips = axis_changes(self.orientation, orientation)
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, :3][:, order]
        affine[:3, 3] = self.affine[:3, 3]
        voxels = self.voxels.transpose(order)
        for axis, flip in enumerate(flips):
            if flip:
                affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
                affine[:3, axis] *= -1
        slices = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        return replace(self, voxels=np.ascontiguousarray(voxels[slices]), affine=affine)


def orientation_of(affine: np.ndarray) -> str:
    """Return the letters of an affine's voxel axes. Each world axis is used once, the clearest match first."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    letters = ["", "", ""]
    magnitude = np.abs(cosines)
    for _ in range(3):
        world, axis = np.unravel_index(int(np.argmax(magnitude)), (3, 3))
        letters[axis] = (_POSITIVE if cosines[world, axis] > 0 else _NEGATIVE)[world]
        magnitude[world, :] = -1
        magnitude[:, axis] = -1
    return "".join(letters)


def axis_changes(source: str, target: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return (order, flips): target axis i is source axis order[i], reversed when flips[i].

    Raises GeometryError when `target` does not name three different directions.
    """

    def _world_axis(letter: str) -> int:
        return _POSITIVE.find(letter) if letter in _POSITIVE else _NEGATIVE.find(letter)

    axes = [_world_axis(letter) for letter in target]
    if sorted(axes) != [0, 1, 2] or len(target) != 3:
        raise GeometryError(f"orientation {target!r}: expected three letters, one each of R/L, A/P, S/I, such as SPL.")
    source_axes = [_world_axis(letter) for letter in source]
    order = tuple(source_axes.index(axis) for axis in axes)
    flips = tuple(source[position] != letter for position, letter in zip(order, target, strict=True))
    return order, flips  # type: ignore[return-value]

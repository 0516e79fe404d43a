"""RTSTRUCT contours filled in on a series' voxel grid.

pydicom parses the file. Contours of one plane combine by the even-odd rule, so that an inner contour is a hole
(DICOM PS3.3 C.8.8.6: CLOSED_PLANAR with keyholes and CLOSED_PLANARXOR come out the same). A voxel belongs to the
region when its centre lies inside.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from fmct.errors import DataError
from fmct.volume import Volume

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_PLANAR = {"CLOSED_PLANAR", "CLOSED_PLANARXOR", "CLOSED_PLANAR_XOR"}
_FLAT = 0.25  # voxels by which a planar contour may leave its plane
_ABOVE = 1e-3  # an edge through a voxel's centre counts for one of its sides


def sop_class(path: Path) -> str:
    """Return the SOP class UID of a DICOM file, "" where it says none. Raises DataError for an unreadable one."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except (InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not readable as DICOM ({type(error).__name__}: {error}).") from None
    return str(header.get("SOPClassUID", ""))


def read_rtstruct(path: Path, shape: Sequence[int], affine: np.ndarray, *, names: Sequence[str] = ()) -> Volume:
    """Return the contours of an RTSTRUCT as Volume of float32 0 or 1 on the grid (shape, affine zyx → RAS mm).

    names: regions to take, whatever their case (empty: all, joined). Where contours lie on fewer planes than the grid
    has, each stands for the slab halfway to its neighbours. Raises DataError for a damaged file, an unknown name, and
    contours off the grid: tilted against its planes, or outside it.
    """
    inside = np.zeros(tuple(shape), dtype=bool)
    for name, contours in _regions(path, names):
        inside |= _filled(f"{path}: region {name}", contours, inside.shape, affine)
    return Volume(inside.astype(np.float32), np.asarray(affine, dtype=np.float64), "mask", "fraction")


def _regions(path: Path, names: Sequence[str]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield (name, contours as (P, 3) RAS mm) of the wanted regions that have closed planar contours."""
    wanted = {name.strip().lower() for name in names}
    try:
        dataset = pydicom.dcmread(path)
        called = {int(item.ROINumber): str(item.ROIName) for item in dataset.StructureSetROISequence}
        found = [
            (called[int(region.ReferencedROINumber)], list(_contours(region)))
            for region in dataset.get("ROIContourSequence", [])
        ]
    except (InvalidDicomError, AttributeError, KeyError, OSError, EOFError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not readable as an RTSTRUCT ({type(error).__name__}: {error}).") from None
    chosen = [(name, parts) for name, parts in found if not wanted or name.strip().lower() in wanted]
    missing = wanted - {name.strip().lower() for name, _ in chosen}
    if missing or not any(parts for _, parts in chosen):
        raise DataError(
            f"{path}: no closed contours of {', '.join(sorted(missing)) or 'any region'}; it has the regions "
            f"{', '.join(called.values()) or 'none'}."
        )
    yield from ((name, parts) for name, parts in chosen if parts)


def _contours(region: pydicom.Dataset) -> Iterator[np.ndarray]:
    for contour in region.get("ContourSequence", []):
        points = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3)
        if str(contour.ContourGeometricType) in _PLANAR and len(points) > 2:
            yield points * _LPS_TO_RAS


def _filled(where: str, contours: list[np.ndarray], shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return one region's voxels, (D, H, W) bool."""
    index = [np.linalg.solve(affine[:3, :3], (points - affine[:3, 3]).T).T for points in contours]
    spread = np.max([np.ptp(points, axis=0) for points in index], axis=0)
    axis = int(np.argmin(spread))
    if spread[axis] > _FLAT:
        raise DataError(
            f"{where}: its contours are tilted against the planes of the series (by {spread[axis]:.1f} voxels): they "
            "were drawn on another series, or the series was resampled after they were drawn."
        )
    everything = np.concatenate(index)
    if (everything.min(axis=0) < -1).any() or (everything.max(axis=0) > np.asarray(shape)).any():
        low, high = everything.min(axis=0).round(1).tolist(), everything.max(axis=0).round(1).tolist()
        raise DataError(
            f"{where}: its contours reach from voxel {low} to {high} (z, y, x), outside the series of {tuple(shape)} "
            "voxels: they were drawn on another series."
        )
    others = [a for a in range(3) if a != axis]
    planes: dict[float, np.ndarray] = {}
    for points in index:
        place = round(float(points[:, axis].mean()), 2)
        plane = planes.setdefault(place, np.zeros([shape[a] for a in others], dtype=bool))
        plane ^= _polygon(points[:, others], plane.shape)
    inside = np.zeros(shape, dtype=bool)
    view = np.moveaxis(inside, axis, 0)
    for number, places in _nearest_planes(sorted(planes), shape[axis]).items():
        for place in places:
            view[number] |= planes[place]
    return inside


def _nearest_planes(places: list[float], count: int) -> dict[int, list[float]]:
    """Return {grid plane: contour planes that it shows}: its nearest, unless that is more than half a pitch away."""
    pitch = max(1.0, float(np.median(np.diff(places)))) if len(places) > 1 else 1.0
    shown: dict[int, list[float]] = defaultdict(list)
    for number in range(count):
        nearest = min(places, key=lambda place: abs(place - number))
        if abs(nearest - number) <= pitch / 2 + 1e-6:
            shown[number].append(nearest)
    return shown


def _polygon(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return which voxel centres lie inside a closed polygon of (row, column) points, by the even-odd rule."""
    a, b = points, np.roll(points, -1, axis=0)
    inside = np.zeros(shape, dtype=bool)
    columns = np.arange(shape[1])
    for row in range(max(0, int(np.floor(points[:, 0].min()))), min(shape[0], int(np.ceil(points[:, 0].max())) + 1)):
        level = row + _ABOVE
        crossing = (a[:, 0] <= level) != (b[:, 0] <= level)
        if not crossing.any():
            continue
        start, end = a[crossing], b[crossing]
        at = start[:, 1] + (level - start[:, 0]) / (end[:, 0] - start[:, 0]) * (end[:, 1] - start[:, 1])
        inside[row] = np.searchsorted(np.sort(at), columns + _ABOVE) % 2 == 1
    return inside

"""Sorts slices into series: by series UID and by everything that must be equal within one volume."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fmct.errors import Refusal
from fmct.io.candidate import Candidate, digest
from fmct.io.dicom_header import SECONDARY_CAPTURE, SliceHeader, file_size
from fmct.io.policy import ReadPolicy
from fmct.io.refusals import Rejected, refusal

_SCOUT = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVEY", "LOCALISER"}
_PROJECTED = {
    "SCREEN SAVE",
    "SCREENSAVE",
    "MIP",
    "PROJECTION IMAGE",
    "VOLUME RENDERED",
    "3D RENDERING",
    "SUMMARY",
    "DOSE",
}
_STRAY_SLICES = 3  # this few slices in another direction than the rest of their series are localizers


@dataclass(eq=False)
class _Group:
    """Slices of one series that share modality, size, spacing, orientation and kernel; `first` is one of them."""

    first: SliceHeader
    paths: list[str] = field(default_factory=list)
    frames: list[tuple[int, int]] = field(default_factory=list)
    name: str = ""
    multi_frame: bool = False

    def fits(self, header: SliceHeader) -> bool:
        """Return whether a slice belongs to this group."""
        return header.kernel == self.first.kernel and same_grid(header, self.first)

    def add(self, path: str, header: SliceHeader) -> None:
        """Take one slice."""
        if not self.paths or self.paths[-1] != path:
            self.paths.append(path)
        self.frames.append((len(self.paths) - 1, header.frame))
        self.multi_frame = self.multi_frame or header.frame > 0

    @property
    def normal(self) -> np.ndarray | None:
        """The normal of the slices, None when the orientation is not stated."""
        if self.first.orientation is None or len(self.first.orientation) != 6:
            return None
        return np.cross(self.first.orientation[:3], self.first.orientation[3:])


def same_grid(a: SliceHeader, b: SliceHeader) -> bool:
    """Return whether two slices may lie in one stack: modality, size, spacing and orientation agree."""
    if (a.modality, a.rows, a.columns) != (b.modality, b.rows, b.columns):
        return False
    return _close(a.spacing, b.spacing, 1e-3) and _close(a.orientation, b.orientation, 1e-3)


def check_header(header: SliceHeader, policy: ReadPolicy) -> None:
    """Raise Refusal for a slice that belongs to no volume: scouts, captures, colour, other modalities."""
    if header.modality not in policy.modalities:
        reason = f"the modality is {header.modality or 'not stated'}; asked for is {', '.join(policy.modalities)}"
        raise refusal("wrong-modality", reason, modality=header.modality, modalities=policy.modalities)
    kinds = set(header.image_type)
    if kinds & _SCOUT:
        raise refusal("scout", f"ImageType says {', '.join(sorted(kinds & _SCOUT))}")
    if header.sop_class.startswith(SECONDARY_CAPTURE):
        raise refusal("derived-image", "a secondary capture")
    if kinds & _PROJECTED:
        raise refusal("derived-image", f"ImageType says {', '.join(sorted(kinds & _PROJECTED))}")
    if "SECONDARY" in header.image_type[1:2] and policy.derived == "refuse":
        raise refusal("derived-image", "ImageType says SECONDARY; derived=accept takes reformatted images")
    if header.burned_in:
        raise refusal("burned-in-annotation", "BurnedInAnnotation is YES")
    if header.samples != 1:
        raise refusal("not-scalar", f"{header.samples} samples a pixel; expected 1", samples=header.samples)


class SeriesIndex:
    """Collects slices file by file and gives out series. Memory: about the length of the paths."""

    def __init__(self, policy: ReadPolicy) -> None:
        self._policy = policy
        self._series: dict[str, list[_Group]] = {}
        self._dropped: dict[tuple[str, str], tuple[str, Refusal, int]] = {}

    def add(self, path: str, name: str, headers: list[SliceHeader]) -> None:
        """Take the slices of one file; `name` is its path relative to the source."""
        for header in headers:
            try:
                check_header(header, self._policy)
            except Refusal as refused:
                first, kept, files = self._dropped.get((header.series_uid, refused.code), (path, refused, 0))
                self._dropped[header.series_uid, refused.code] = (first, kept, files + (header.frame == 0))
                continue
            groups = self._series.setdefault(header.series_uid, [])
            group = next((g for g in groups if g.fits(header)), None)
            if group is None:
                group = _Group(header, name=name)
                groups.append(group)
            group.add(path, header)

    def take(self) -> Iterator[Candidate | Rejected]:
        """Yield every series so far, in the order of their first files, and forget them."""
        for path, refused, files in self._dropped.values():
            yield Rejected(path, refused.code, refused.reason, refused.numbers, max(1, files))
        for uid, groups in self._series.items():
            yield from self._sorted_out(uid, groups)
        self._series, self._dropped = {}, {}

    def _sorted_out(self, uid: str, groups: list[_Group]) -> Iterator[Candidate | Rejected]:
        """Yield the series under one UID: strays and mixed kernels apart."""
        main = max(groups, key=lambda g: len(g.frames))
        left = [g for g in groups if not _is_stray(g, main)]
        for stray in (g for g in groups if g not in left):
            reason = f"{len(stray.frames)} images in another direction than the {len(main.frames)} of their series"
            yield Rejected(stray.paths[0], "scout", reason, {"images": len(stray.frames)}, len(stray.paths))
        while left:
            alike = [g for g in left if g is left[0] or same_grid(g.first, left[0].first)]
            left = [g for g in left if g not in alike]
            if len(alike) > 1 and self._policy.kernels == "refuse":
                kernels = {g.first.kernel or "none": len(g.frames) for g in alike}
                told = ", ".join(f"{kernel} × {count}" for kernel, count in kernels.items())
                reason = f"one series UID holds slices of {len(alike)} kernels ({told}); kernels=split separates them"
                files = sum(len(g.paths) for g in alike)
                yield Rejected(alike[0].paths[0], "mixed-kernels", reason, {"kernels": kernels}, files)
                continue
            yield from (_candidate(uid, group) for group in alike)


def _is_stray(group: _Group, main: _Group) -> bool:
    """Return whether a group is a few images in another direction than the main group of its series."""
    if group is main or len(group.frames) > _STRAY_SLICES or len(main.frames) <= _STRAY_SLICES:
        return False
    if group.normal is None or main.normal is None:
        return False
    return abs(float(group.normal @ main.normal)) < np.cos(np.radians(10))


def _candidate(uid: str, group: _Group) -> Candidate:
    """Return the candidate of one group; its key depends on the UID and on what distinguishes the group."""
    header = group.first
    grid = [*(header.orientation or ()), *(header.spacing or ()), header.rows, header.columns]
    series = digest(uid)
    distinct = digest(uid, header.modality, header.kernel, *(f"{value:.2f}" for value in grid))
    return Candidate(
        key=f"dicom-{distinct}",
        paths=tuple(group.paths),
        format="dicom",
        name=group.name,
        patient=header.patient,
        series=series,
        modality=header.modality,
        bytes=sum(file_size(path) for path in group.paths),
        frames=tuple(group.frames) if group.multi_frame else (),
    )


def _close(a: tuple[float, ...] | None, b: tuple[float, ...] | None, tolerance: float) -> bool:
    """Return whether two vectors agree within a tolerance; two absent ones do, and so do two NaN."""
    if a is None or b is None or len(a) != len(b):
        return a is b
    return all(x == y or abs(x - y) <= tolerance or (x != x and y != y) for x, y in zip(a, b, strict=True))

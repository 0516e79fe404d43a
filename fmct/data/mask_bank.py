"""Masks on their series' own voxel grid, decoded once and kept beside the store, so that a window costs a crop.

A mask is kept as the box that holds its lesions, with points of each lesion to draw windows around. Read at a pyramid
level it is int16: the lesion's share of each voxel times `MASK_SCALE`, so that a one-voxel lesion survives any level.
"""

import hashlib
import io
import logging
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from fmct import randomness
from fmct.artefacts import write_bytes
from fmct.data.mask_files import mask_on_grid
from fmct.errors import DataError
from fmct.io.masks import MaskGrid, read_mask
from fmct.shapes import Triple
from fmct.store.manifest import Entry
from fmct.volume import Volume

log = logging.getLogger(__name__)
MASK_SCALE = 32767
_VERSION = "1"
_POINTS = 512  # kept of each lesion
_KEPT_BYTES = 256 << 20  # of boxes at all levels, per process
_ALIGNED = 0.05  # voxels by which a mask's voxels may miss the series'


@dataclass(frozen=True)
class MaskOptions:
    """How mask files are read.

    labels: which labels of a NIfTI mask are the lesion; empty takes the only one there is. names: segments or contours
    of a DICOM file; empty takes all. resample: a mask on another grid of the same world is brought onto the series'.
    cache: folder for decoded masks; empty is STORE.masks beside the store.
    """

    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    resample: bool = False
    cache: str = ""


@dataclass(frozen=True)
class LesionMask:
    """One mask on its series' level 0.

    start, box: the voxels that hold lesions, uint8 share times 255 ((0, 0, 0) where there are none). points: (P, 3)
    voxel indices inside lesions; lesion: (P,) the number of each point's lesion, from 0. volume_mm3: of all lesions.
    """

    start: Triple
    box: np.ndarray
    points: np.ndarray
    lesion: np.ndarray
    volume_mm3: float

    @property
    def empty(self) -> bool:
        """Whether there is no lesion."""
        return self.box.size == 0


class MaskBank:
    """The masks of a cohort. Cheap to pickle: it holds paths; each process decodes or loads what it needs."""

    def __init__(self, cache: Path, options: MaskOptions) -> None:
        self.cache, self.options = cache, options
        self._kept: OrderedDict[tuple[str, Triple], tuple[Triple, np.ndarray]] = OrderedDict()
        self._masks: OrderedDict[str, LesionMask] = OrderedDict()
        self._warned = False

    def __getstate__(self) -> dict[str, object]:
        return {"cache": self.cache, "options": self.options}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["cache"], state["options"])  # type: ignore[arg-type]

    def mask(self, entry: Entry, path: Path) -> LesionMask:
        """Return the mask of a series. Raises DataError for a file that is no mask, or one off the series' grid."""
        if entry.id not in self._masks:
            place = self.cache / f"{entry.id}-{self._fingerprint(entry, path)}.npz"
            self._masks[entry.id] = _load(place) or self._decode(entry, path, place)
            while len(self._masks) > 1 and sum(mask.box.nbytes for mask in self._masks.values()) > _KEPT_BYTES:
                self._masks.popitem(last=False)
        self._masks.move_to_end(entry.id)
        return self._masks[entry.id]

    def read(self, entry: Entry, path: Path, level: int, start: Triple, shape: Triple) -> np.ndarray:
        """Return a box of a pyramid level, (d, h, w) int16: the lesion's share of each voxel times MASK_SCALE."""
        origin, box = self._level(entry, path, entry.levels[level].factor)
        out = np.zeros(shape, dtype=np.int16)
        low = np.maximum(np.subtract(origin, start), 0)
        high = np.minimum(np.subtract(np.add(origin, box.shape), start), shape)
        if box.size and (high > low).all():
            inner = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            shift = np.subtract(start, origin)
            out[inner] = box[tuple(slice(a, b) for a, b in zip(low + shift, high + shift, strict=True))]
        return out

    def _level(self, entry: Entry, path: Path, factor: Triple) -> tuple[Triple, np.ndarray]:
        key = (entry.id, factor)
        if key not in self._kept:
            self._kept[key] = _at_level(self.mask(entry, path), factor, entry.shape)
            while len(self._kept) > 1 and sum(box.nbytes for _, box in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _fingerprint(self, entry: Entry, path: Path) -> str:
        """Return what a decoded mask depends on: the file as it is, the series' grid, and how it is read."""
        try:
            facts = path.stat()
        except OSError as error:
            raise DataError(f"{path}: the mask of series {entry.id} cannot be read ({error.strerror}).") from None
        options = (self.options.labels, self.options.names, self.options.resample)
        text = f"{_VERSION} {path.resolve()} {facts.st_size} {facts.st_mtime_ns} {entry.content_hash} {options}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def _decode(self, entry: Entry, path: Path, place: Path) -> LesionMask:
        options = self.options
        grid = MaskGrid(entry.shape, np.array(entry.affine))
        try:
            volume = read_mask(path, grid=grid, labels=options.labels, names=options.names)
            share = _on_series(volume, entry, resample=options.resample)
        except DataError as error:
            raise DataError(f"series {entry.id}, patient {entry.patient}: {error}") from None
        mask = _boxed(share, entry)
        try:
            _save(mask, place)
        except OSError as error:
            if not self._warned:
                log.warning("%s: decoded masks cannot be kept there (%s); each process decodes.", place.parent, error)
            self._warned = True
        return mask


def _on_series(mask: Volume, entry: Entry, *, resample: bool) -> np.ndarray:
    """Return the mask's share of the series' level-0 voxels, float32. Raises DataError when it lies off the grid."""
    affine = np.array(entry.affine)
    to_series = np.linalg.solve(affine, mask.affine)
    steps, start = to_series[:3, :3], to_series[:3, 3]
    # Whole masks may be smaller (segmentations leave empty slices out) or larger than the series, on its voxels.
    drift = np.abs(steps - np.eye(3)) * np.asarray(mask.shape)
    if drift.max() <= _ALIGNED and np.abs(start - np.rint(start)).max() <= _ALIGNED:
        return _placed(mask.voxels, np.rint(start).astype(int), entry)
    if not resample:
        raise DataError(
            f"the mask lies off the scan's voxel grid: shape {mask.shape} of {mask.spacing.round(3).tolist()} mm, its "
            f"first voxel at the scan's {start.round(2).tolist()}; the scan has {tuple(entry.shape)} of "
            f"{[round(s, 3) for s in entry.spacing_mm]} mm (z, y, x). Bring it onto the scan's grid, or let it be "
            "resampled: mask_options.resample=true."
        )
    share = mask_on_grid(mask, entry.shape, affine)
    kept = float(share.sum(dtype=np.float64) * abs(np.linalg.det(affine[:3, :3])))
    drawn = float(mask.voxels.sum(dtype=np.float64) * np.prod(mask.spacing))
    if kept < 0.9 * drawn:
        raise DataError(f"of the mask's {drawn:.0f} mm³ only {kept:.0f} mm³ lie inside the scan: not its mask.")
    return share


def _placed(voxels: np.ndarray, start: np.ndarray, entry: Entry) -> np.ndarray:
    """Return a mask on the series' voxels, whose first voxel is the series' `start`, in the series' shape."""
    share = np.zeros(entry.shape, dtype=np.float32)
    low, high = np.maximum(start, 0), np.minimum(start + voxels.shape, entry.shape)
    if (high > low).all():
        part = voxels[tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))]
        share[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = part
    lost = int(np.count_nonzero(voxels)) - int(np.count_nonzero(share))
    if lost:
        raise DataError(
            f"the mask lies off the scan's voxel grid: {lost} of its voxels are outside the scan of "
            f"{tuple(entry.shape)} voxels; the mask has {voxels.shape}, its first voxel at the scan's {start.tolist()}."
        )
    return share


def _boxed(share: np.ndarray, entry: Entry) -> LesionMask:
    """Return the box that holds the lesions, and points of each lesion (26-neighbours join)."""
    inside = share > 0
    found = ndimage.find_objects(inside.astype(np.uint8))
    if not found or found[0] is None:
        nothing = np.zeros((0, 3), dtype=np.int32)
        return LesionMask((0, 0, 0), np.zeros((0, 0, 0), np.uint8), nothing, np.zeros(0, np.int32), 0.0)
    box = found[0]
    start = (int(box[0].start), int(box[1].start), int(box[2].start))
    labels = np.empty(inside[box].shape, dtype=np.int32)
    count = ndimage.label(inside[box], structure=np.ones((3, 3, 3)), output=labels)
    points, lesion = [], []
    for number in range(int(np.asarray(count))):
        index = np.argwhere(labels == number + 1)
        if len(index) > _POINTS:
            index = index[np.sort(randomness.permutation(len(index), 0, "lesion points", number)[:_POINTS])]
        points.append(index + np.asarray(start))
        lesion.append(np.full(len(index), number))
    volume = float(share.sum(dtype=np.float64) * np.prod(entry.spacing_mm))
    kept = np.minimum(np.ceil(share[box] * 255), 255).astype(np.uint8)
    return LesionMask(
        start, kept, np.concatenate(points).astype(np.int32), np.concatenate(lesion).astype(np.int32), volume
    )


def _at_level(mask: LesionMask, factor: Triple, shape: Sequence[int]) -> tuple[Triple, np.ndarray]:
    """Return (first voxel of the level, int16 box): block means over level-0 voxels; the scan's last one repeats."""
    if mask.empty:
        return (0, 0, 0), np.zeros((0, 0, 0), np.int16)
    start = [a // f for a, f in zip(mask.start, factor, strict=True)]
    before = [a - s * f for a, s, f in zip(mask.start, start, factor, strict=True)]
    counts = [-(-(b + n) // f) for b, n, f in zip(before, mask.box.shape, factor, strict=True)]
    padded = np.zeros([c * f for c, f in zip(counts, factor, strict=True)], dtype=np.float32)
    z, y, x = (slice(b, b + n) for b, n in zip(before, mask.box.shape, strict=True))
    padded[z, y, x] = mask.box
    for axis, (s, f) in enumerate(zip(start, factor, strict=True)):
        inside = shape[axis] - s * f
        if inside < padded.shape[axis]:
            lines = np.moveaxis(padded, axis, 0)
            lines[inside:] = lines[inside - 1]
    d, h, w = counts
    means = padded.reshape(d, factor[0], h, factor[1], w, factor[2]).mean(axis=(1, 3, 5), dtype=np.float64)
    level = np.minimum(np.ceil(means * (MASK_SCALE / 255)), MASK_SCALE).astype(np.int16)
    return (start[0], start[1], start[2]), level


def _save(mask: LesionMask, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        start=np.array(mask.start),
        box=mask.box,
        points=mask.points,
        lesion=mask.lesion,
        volume_mm3=np.array(mask.volume_mm3),
    )
    write_bytes(place, buffer.getvalue())


def _load(place: Path) -> LesionMask | None:
    """Return a kept mask, None when there is none that reads."""
    try:
        with np.load(place, allow_pickle=False) as kept:
            z, y, x = (int(n) for n in kept["start"])
            return LesionMask((z, y, x), kept["box"], kept["points"], kept["lesion"], float(kept["volume_mm3"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None

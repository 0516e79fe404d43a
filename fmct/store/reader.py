"""Reading a store: boxes of voxels of any series at any pyramid level, every byte checked."""

import errno
import hashlib
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import read_json
from fmct.errors import ArtefactError, DataError
from fmct.shapes import Triple
from fmct.store import hdf5
from fmct.store.codec import checksum
from fmct.store.fingerprint import voxel_hash
from fmct.store.manifest import MANIFEST, RECORD, STORE_FORMAT, Entry, read_manifest
from fmct.store.split_table import read_splits
from fmct.volume import Volume

_OPEN_FILES = 64
_OPEN_SERIES = 32
_TRANSIENT = (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR)


@dataclass
class Shard:
    """An open shard: the HDF5 file for its index, a descriptor for its chunks."""

    path: Path
    file: Any
    descriptor: int

    def close(self) -> None:
        """Close both."""
        os.close(self.descriptor)
        self.file.close()


@dataclass
class Series:
    """An entry in use: by level its dataset, its chunks' (offset, bytes, checksum), and which of them were checked."""

    shard: Shard
    datasets: list[Any]
    rows: list[np.ndarray]
    checked: list[np.ndarray]


def is_store(path: str | Path) -> bool:
    """Return whether `path` is a store."""
    return (Path(path) / RECORD).is_file()


class Store:
    """A corpus on disk. Cheap to make and to pickle; files open on the first read, once per process.

    Each process compares a chunk with its checksum when it first reads it. A reader keeps at most 64 files and 32
    series open, so a loader worker stays small however large the store is.
    """

    def __init__(self, path: str | Path, *, manifest_bytes: int | None = None) -> None:
        self.path = Path(path)
        self._manifest_bytes = manifest_bytes
        self._forget()

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Return the store at `path`, as its manifest is now. Raises ArtefactError when there is none."""
        path = Path(path)
        if not (path / RECORD).is_file():
            raise ArtefactError(f"{path}: not a store (no {RECORD}). Make one with: fmct ingest SOURCE… {path}")
        read_json(path / RECORD, *STORE_FORMAT)
        manifest = path / MANIFEST
        return cls(path, manifest_bytes=manifest.stat().st_size if manifest.is_file() else 0)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the store says of itself: chunk, codec and the measurement behind them, key fingerprint."""
        return read_json(self.path / RECORD, *STORE_FORMAT)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every series, in manifest order."""
        return tuple(read_manifest(self.path, self._manifest_bytes))

    def entry(self, name: str) -> Entry:
        """Return the entry with an id. Raises DataError when there is none."""
        if name not in self._by_id:
            raise DataError(f"{self.path}: no entry {name!r} in this store of {len(self.entries)} series.")
        return self._by_id[name]

    def read(self, entry: Entry, level: int, start: Triple, size: Triple) -> np.ndarray:
        """Return a new (d, h, w) int16 array: the box of `size` voxels from index `start` (z, y, x) of a level.

        Times `entry.scale` it is in `entry.units`. Raises DataError for a box outside the level, ArtefactError for
        bytes that are not those that were written.
        """
        if not 0 <= level < len(entry.levels):
            raise DataError(f"entry {entry.id}: no level {level}; it has levels 0 to {len(entry.levels) - 1}.")
        shape = entry.levels[level].shape
        if any(a < 0 or n < 1 or a + n > s for a, n, s in zip(start, size, shape, strict=True)):
            raise DataError(
                f"entry {entry.id}, level {level}: the box of {tuple(size)} voxels at {tuple(start)} is not inside the "
                f"level's {shape}. Clip it before reading."
            )
        for attempt in range(4):
            try:
                return self._read_box(entry, level, start, size)
            except OSError as error:
                if error.errno not in _TRANSIENT or attempt == 3:
                    raise ArtefactError(
                        f"{entry.shard}: entry {entry.id} cannot be read ({error.strerror or error})."
                    ) from None
                self.close()
                time.sleep(0.1 * 4**attempt)
        raise AssertionError("unreachable")

    def read_level(self, entry: Entry, level: int) -> np.ndarray:
        """Return a whole level, (D, H, W) int16."""
        return self.read(entry, level, (0, 0, 0), entry.levels[level].shape)

    def volume(self, entry: Entry) -> Volume:
        """Return the series on its native grid: int16 HU for CT, float32 in `entry.units` otherwise."""
        voxels = self.read_level(entry, 0)
        if entry.modality != "CT":
            voxels = voxels.astype(np.float32) * np.float32(entry.scale)
        return Volume(voxels, np.array(entry.affine), entry.modality, entry.units, dict(entry.facts))

    def splits(self) -> dict[str, str]:
        """Return {entry id: split} of `splits.csv`; series of patients without a row are absent."""
        of_patient = read_splits(self.path)
        return {entry.id: of_patient[entry.patient] for entry in self.entries if entry.patient in of_patient}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the sorted content hashes: equal for equal content, in whatever order it came in."""
        return hashlib.sha256("\n".join(sorted(entry.content_hash for entry in self.entries)).encode()).hexdigest()

    def verify(self, entry: Entry) -> None:
        """Read every byte of an entry. Raises ArtefactError when the voxels are not those that were ingested."""
        for level in range(1, len(entry.levels)):
            self.read_level(entry, level)
        if voxel_hash(self.read_level(entry, 0)) != entry.voxel_hash:
            raise ArtefactError(f"{entry.shard}: entry {entry.id} does not hold the voxels of its manifest line.")

    def close(self) -> None:
        """Close every file; the next read opens what it needs."""
        for shard in self._shards.values():
            shard.close()
        self._forget()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest_bytes": self._manifest_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], manifest_bytes=state["manifest_bytes"])

    @cached_property
    def _by_id(self) -> dict[str, Entry]:
        return {entry.id: entry for entry in self.entries}

    def _forget(self) -> None:
        self._process = os.getpid()
        self._shards: OrderedDict[Path, Shard] = OrderedDict()
        self._series: OrderedDict[str, Series] = OrderedDict()
        self._buffer = bytearray(1 << 18)

    def _read_box(self, entry: Entry, level: int, start: Triple, size: Triple) -> np.ndarray:
        if os.getpid() != self._process:
            self._forget()  # forked: the parent's handles are not ours to use or close
        series = self.series(entry)
        chunks = series.datasets[level].chunks
        box = tuple(slice(a // c, (a + n - 1) // c + 1) for a, n, c in zip(start, size, chunks, strict=True))
        if not series.checked[level][box].all():
            self._check(entry, series, level, box)
        return series.datasets[level][tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]

    def _check(self, entry: Entry, series: Series, level: int, box: tuple[slice, ...]) -> None:
        """Compare the chunks of a box with their checksums, as they lie in the file."""
        checked, rows = series.checked[level], series.rows[level]
        for z in range(box[0].start, box[0].stop):
            for y in range(box[1].start, box[1].stop):
                if checked[z, y, box[2]].all():
                    continue
                run = rows[z, y, box[2]].tolist()
                # One read: a row of chunks lies together in the file, but not always in order (HDF5 fills gaps).
                begin, end = min(row[0] for row in run), max(row[0] + row[1] for row in run)
                content = self._bytes(series.shard.descriptor, begin, end - begin)
                for x, (offset, length, expected) in enumerate(run, start=box[2].start):
                    piece = content[offset - begin :]
                    if len(piece) < length or checksum(piece, length) != expected:
                        raise ArtefactError(
                            f"{series.shard.path.name}: entry {entry.id}, level {level}, chunk {(z, y, x)}: the bytes "
                            "on disk are not those that were written (checksum). The shard is damaged: restore it from "
                            "a copy, or ingest these series into a new store."
                        )
                checked[z, y, box[2]] = True

    def _bytes(self, descriptor: int, begin: int, length: int) -> np.ndarray:
        """Return bytes of a file, uint8, fewer than asked for at its end; valid until the next call."""
        if len(self._buffer) < length:
            self._buffer = bytearray(2 * length)
        view, done = memoryview(self._buffer), 0
        while done < length:
            count = os.preadv(descriptor, [view[done:length]], begin + done)
            if count == 0:
                break
            done += count
        return np.frombuffer(view[:done], dtype=np.uint8)

    def _shard(self, entry: Entry) -> Shard:
        path = self.path / entry.shard
        shard = self._shards.get(path)
        if shard is None and not path.is_file():
            path = self.path / part_name(entry.id)  # taken, but its shard is not full yet
            shard = self._shards.get(path)
            if shard is None and not path.is_file():
                raise ArtefactError(f"{self.path / entry.shard}: no such shard. Was part of the store not copied?")
        if shard is None:
            if len(self._shards) >= _OPEN_FILES:
                self._close_oldest()
            file = hdf5.open_for_reading(path)
            shard = self._shards[path] = Shard(path, file, os.open(path, os.O_RDONLY))
        self._shards.move_to_end(path)
        return shard

    def _close_oldest(self) -> None:
        _, shard = self._shards.popitem(last=False)
        self._series = OrderedDict((k, v) for k, v in self._series.items() if v.shard is not shard)
        shard.close()

    def series(self, entry: Entry) -> Series:
        """Return an entry's open datasets and chunk index; the store may close them at the next read."""
        series = self._series.get(entry.id)
        if series is None:
            shard = self._shard(entry)
            if len(self._series) >= _OPEN_SERIES:
                self._series.popitem(last=False)
            datasets, rows = hdf5.open_series(shard.file, entry.id, len(entry.levels))
            checked = [np.zeros(table.shape[:3], dtype=bool) for table in rows]
            series = self._series[entry.id] = Series(shard, datasets, rows, checked)
        self._series.move_to_end(entry.id)
        return series


def part_name(name: str) -> str:
    """Return the path, relative to the store, of the part that holds one entry until its shard is sealed."""
    return f"parts/{name}.h5"

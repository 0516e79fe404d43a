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
from fmct.store.codec import checksum, direct_decoder
from fmct.store.manifest import MANIFEST, RECORD, STORE_FORMAT, Entry, read_manifest
from fmct.volume import Volume

_OPEN_FILES = 64
_INDEX_BYTES = 64 << 20
_TRANSIENT = (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR)


@dataclass
class _Shard:
    """An open shard: the HDF5 file for its index, a descriptor for its chunks."""

    path: Path
    file: Any
    descriptor: int

    def close(self) -> None:
        os.close(self.descriptor)
        self.file.close()


@dataclass(frozen=True)
class _Index:
    """Where every chunk of an entry lies: rows (offset, bytes, checksum) as plain integers, levels as in hdf5."""

    rows: np.ndarray
    levels: list[hdf5.Location]


class Store:
    """A corpus on disk. Cheap to make and to pickle; files open on the first read, once per process.

    A reader holds at most 64 files and 64 MiB of chunk indices, so a loader worker stays small however large the store.
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
                    raise ArtefactError(f"{entry.shard}: entry {entry.id} cannot be read ({error.strerror}).") from None
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
        from fmct.store.splits import read_splits

        of_patient = read_splits(self.path)
        return {entry.id: of_patient[entry.patient] for entry in self.entries if entry.patient in of_patient}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the sorted content hashes: equal for equal content, in whatever order it came in."""
        return hashlib.sha256("\n".join(sorted(entry.content_hash for entry in self.entries)).encode()).hexdigest()

    def verify(self, entry: Entry) -> None:
        """Read every byte of an entry. Raises ArtefactError when the voxels are not those that were ingested."""
        from fmct.store.fingerprint import voxel_hash

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
        self._shards: OrderedDict[Path, _Shard] = OrderedDict()
        self._indices: OrderedDict[str, _Index] = OrderedDict()
        self._index_bytes = 0
        self._scratch: dict[int, np.ndarray] = {}

    def _read_box(self, entry: Entry, level: int, start: Triple, size: Triple) -> np.ndarray:
        if os.getpid() != self._process:
            self._forget()  # forked: the parent's handles are not ours to use or close
        shard = self._shard(entry)
        index = self._index(entry, shard)
        decode = direct_decoder(self.record["codec"])
        if decode is None:
            self._check_box(entry, shard, index, level, start, size)
            return hdf5.read_hyperslab(shard.file, entry.id, level, start, size)
        first, grid, chunk = index.levels[level]
        count = chunk[0] * chunk[1] * chunk[2]
        scratch = self._scratch.get(count)
        if scratch is None:
            scratch = self._scratch[count] = np.empty(count, dtype=np.int16)
        block, target = scratch.reshape(chunk), scratch.ctypes.data
        out = np.empty(size, dtype=np.int16)
        (z0, y0, x0), (dz, dy, dx), (cz, cy, cx) = start, size, chunk
        x_first, x_last = x0 // cx, (x0 + dx - 1) // cx
        for kz in range(z0 // cz, (z0 + dz - 1) // cz + 1):
            za, zb = max(z0, kz * cz), min(z0 + dz, kz * cz + cz)
            for ky in range(y0 // cy, (y0 + dy - 1) // cy + 1):
                ya, yb = max(y0, ky * cy), min(y0 + dy, ky * cy + cy)
                row = first + (kz * grid[1] + ky) * grid[2]
                rows = index.rows[row + x_first : row + x_last + 1].tolist()
                content, address = _read_run(shard.descriptor, rows)
                base = rows[0][0]
                for kx, (offset, length, expected) in zip(range(x_first, x_last + 1), rows, strict=True):
                    at = offset - base
                    if checksum(content, at, at + length) != expected or not decode(address + at, target, count):
                        raise _damaged(entry, shard, level, (kz, ky, kx))
                    xa, xb = max(x0, kx * cx), min(x0 + dx, kx * cx + cx)
                    out[za - z0 : zb - z0, ya - y0 : yb - y0, xa - x0 : xb - x0] = block[
                        za - kz * cz : zb - kz * cz, ya - ky * cy : yb - ky * cy, xa - kx * cx : xb - kx * cx
                    ]
        return out

    def _check_box(self, entry: Entry, shard: _Shard, index: _Index, level: int, start: Triple, size: Triple) -> None:
        """Check every chunk of a box that HDF5 is about to decode."""
        first, grid, chunk = index.levels[level]
        ranges = [range(a // c, (a + n - 1) // c + 1) for a, n, c in zip(start, size, chunk, strict=True)]
        for kz in ranges[0]:
            for ky in ranges[1]:
                row = first + (kz * grid[1] + ky) * grid[2]
                rows = index.rows[row + ranges[2].start : row + ranges[2].stop].tolist()
                content, _ = _read_run(shard.descriptor, rows)
                for kx, (offset, length, expected) in zip(ranges[2], rows, strict=True):
                    at = offset - rows[0][0]
                    if checksum(content, at, at + length) != expected:
                        raise _damaged(entry, shard, level, (kz, ky, kx))

    def _shard(self, entry: Entry) -> _Shard:
        path = self.path / entry.shard
        shard = self._shards.get(path)
        if shard is None and not path.is_file():
            path = self.path / part_name(entry.id)  # taken, but its shard is not full yet
            shard = self._shards.get(path)
            if shard is None and not path.is_file():
                raise ArtefactError(f"{self.path / entry.shard}: no such shard. Was part of the store not copied?")
        if shard is None:
            if len(self._shards) >= _OPEN_FILES:
                self._shards.popitem(last=False)[1].close()
            file = hdf5.open_for_reading(path)
            shard = self._shards[path] = _Shard(path, file, os.open(path, os.O_RDONLY))
        self._shards.move_to_end(path)
        return shard

    def _index(self, entry: Entry, shard: _Shard) -> _Index:
        index = self._indices.get(entry.id)
        if index is None:
            index = _Index(*hdf5.read_index(shard.file, entry.id, len(entry.levels)))
            self._index_bytes += index.rows.nbytes
            while self._indices and self._index_bytes > _INDEX_BYTES:
                self._index_bytes -= self._indices.popitem(last=False)[1].rows.nbytes
            self._indices[entry.id] = index
        self._indices.move_to_end(entry.id)
        return index


def part_name(name: str) -> str:
    """Return the path, relative to the store, of the part that holds one entry until its shard is sealed."""
    return f"parts/{name}.h5"


def _read_run(descriptor: int, rows: list[list[int]]) -> tuple[bytes, int]:
    """Return the bytes from the first chunk of `rows` to the end of the last, and their address.

    Chunks of one row along x were written one after the other; were they not, the gaps are read with them.
    """
    begin, end = rows[0][0], rows[-1][0] + rows[-1][1]
    content = os.pread(descriptor, end - begin, begin)
    return content, np.frombuffer(content, dtype=np.uint8).ctypes.data if content else 0


def _damaged(entry: Entry, shard: _Shard, level: int, chunk: Triple) -> ArtefactError:
    return ArtefactError(
        f"{shard.path.name}: entry {entry.id}, level {level}, chunk {chunk}: the bytes on disk are not those that were "
        "written (checksum). The shard is damaged: restore it from a copy, or ingest these series into a new store."
    )

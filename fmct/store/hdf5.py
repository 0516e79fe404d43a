"""HDF5 files of a store: parts (one series) and shards (up to 64), both sealed. The only user of h5py.

A file holds one group per entry: datasets `level0`, `level1`, … (int16, chunked, compressed) and `index`, one row
(byte offset, compressed bytes, checksum) per chunk, levels one after the other, chunks in (z, y, x) order. The index
lets a reader check a row of chunks with one read of the file, before HDF5 decodes it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from fmct.artefacts import fsync_directory
from fmct.errors import ArtefactError
from fmct.shapes import Triple
from fmct.store.codec import checksum, dataset_arguments

FORMAT = ("fmct-shard", 1)
FILTERS = tuple(hdf5plugin.FILTERS)  # importing hdf5plugin registers them, for reading as for writing
_RECORD = "record"
CHUNK_CACHE = 0  # bytes a dataset: the crops of a sample overlap little, and many datasets are open


def chunk_grid(shape: Sequence[int], chunk: Sequence[int]) -> Triple:
    """Return the number of chunks along (z, y, x)."""
    z, y, x = (-(-n // c) for n, c in zip(shape, chunk, strict=True))
    return (z, y, x)


@contextmanager
def sealing(path: Path) -> Iterator[Any]:
    """Yield a new HDF5 file that appears at `path` whole and on disk, or not at all."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        # Chunks on 8-byte bounds let the checksum read words in place.
        with h5py.File(temporary, "w", libver="v110", alignment_threshold=1, alignment_interval=8) as file:
            file.attrs["format"] = FORMAT[0]
            file.attrs["version"] = FORMAT[1]
            yield file
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def write_part(path: Path, name: str, levels: Sequence[np.ndarray], record: str, *, chunk: Triple, codec: str) -> int:
    """Write one series as a sealed file and return its compressed bytes.

    levels: int16 (D, H, W) of every pyramid level. record: what the file itself says of the entry (JSON).
    """
    arguments = dataset_arguments(codec)
    with sealing(path) as file:
        group = file.create_group(name)
        for number, voxels in enumerate(levels):
            fitting = tuple(min(c, n) for c, n in zip(chunk, voxels.shape, strict=True))
            group.create_dataset(f"level{number}", data=voxels, chunks=fitting, **arguments)
        file.flush()
        rows = _index_rows(Path(file.filename), group)
        group.create_dataset("index", data=rows)
        group.attrs[_RECORD] = np.bytes_(record.encode("utf-8"))
    return int(rows[:, 1].sum())


def write_shard(path: Path, parts: Sequence[tuple[str, Path]]) -> None:
    """Copy sealed parts, compressed as they are, into one sealed shard; every chunk is checked on its way.

    Raises ArtefactError when a chunk of a part is not what its checksum says.
    """
    with sealing(path) as file:
        for name, part in parts:
            with open_for_reading(part) as source:
                file.copy(source[name], file, name)
                before = source[name]["index"][...]
            group = file[name]
            del group["index"]
            file.flush()
            rows = _index_rows(Path(file.filename), group)
            if not np.array_equal(rows[:, 1:], before[:, 1:]):
                raise ArtefactError(
                    f"entry {name}: {part.name} does not hold what was written into it; the disk changed bytes. "
                    "Delete that file and run the same ingest again."
                )
            group.create_dataset("index", data=rows)


def open_for_reading(path: Path) -> Any:
    """Return an open HDF5 file of ours, without file locks (network file systems refuse them). Raises ArtefactError."""
    try:
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=CHUNK_CACHE)
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such shard. Was part of the store not copied?") from None
    except OSError as error:
        raise ArtefactError(f"{path}: not readable as a shard ({error}); it is damaged or cut short.") from None
    if file.attrs.get("format") != FORMAT[0] or file.attrs.get("version") != FORMAT[1]:
        file.close()
        raise ArtefactError(
            f"{path}: expected a shard of format {FORMAT[0]} {FORMAT[1]}; it was not written by this fmct."
        )
    return file


def read_record(path: Path, name: str) -> tuple[str, int]:
    """Return the record that a part holds of its entry, and its compressed bytes."""
    with open_for_reading(path) as file:
        group = file[name]
        return bytes(group.attrs[_RECORD]).decode("utf-8"), int(group["index"][:, 1].sum())


def open_series(file: Any, name: str, levels: int) -> tuple[list[Any], list[np.ndarray]]:
    """Return, by level, an entry's dataset and its chunk index: (chunk grid z, y, x, 3) uint64.

    Raises ArtefactError when the shard does not hold the entry as the manifest says.
    """
    try:
        group = file[name]
        table = group["index"][...]
        datasets = [group[f"level{number}"] for number in range(levels)]
        grids = [chunk_grid(dataset.shape, dataset.chunks) for dataset in datasets]
        cuts = np.cumsum([int(np.prod(grid)) for grid in grids])
        if table.shape != (cuts[-1], 3):
            raise ValueError(f"{len(table)} chunks indexed, {cuts[-1]} expected")
        parts = np.split(table, cuts[:-1])
        return datasets, [part.reshape(*grid, 3) for part, grid in zip(parts, grids, strict=True)]
    except (KeyError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise ArtefactError(
            f"{Path(file.filename).name}: entry {name} is not whole there ({type(error).__name__}); the shard is "
            "damaged or belongs to another store. Restore it from a copy, or ingest again."
        ) from None


def _index_rows(path: Path, group: Any) -> np.ndarray:
    """Return (offset, bytes, checksum) of every chunk of a group's levels, read back from the file."""
    rows: list[np.ndarray] = []
    with open(path, "rb") as raw:
        for number in range(len(group) - ("index" in group)):
            dataset = group[f"level{number}"]
            grid = chunk_grid(dataset.shape, dataset.chunks)
            table = np.zeros((int(np.prod(grid)), 3), dtype=np.uint64)
            dataset.id.chunk_iter(_collect(table, grid, dataset.chunks))
            for row in table:
                raw.seek(int(row[0]))
                row[2] = checksum(np.frombuffer(raw.read(int(row[1]) + 8), dtype=np.uint8), int(row[1]))
            rows.append(table)
    return np.concatenate(rows)


def _collect(table: np.ndarray, grid: Triple, chunk: Triple) -> Callable[[Any], None]:
    def visit(stored: Any) -> None:
        """Note where one chunk lies."""
        assert stored.filter_mask == 0, "HDF5 left a chunk unfiltered"
        z, y, x = (offset // c for offset, c in zip(stored.chunk_offset, chunk, strict=True))
        table[(z * grid[1] + y) * grid[2] + x, :2] = (stored.byte_offset, stored.size)

    return visit

"""The floor under reading: what decoding the same chunks costs with nothing around it."""

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmct.errors import ConfigError
from fmct.shapes import Triple
from fmct.store.codec import direct_decoder
from fmct.store.manifest import Entry
from fmct.store.reader import Store

Box = tuple[int, Triple, Triple]  # level, start, size


@dataclass(frozen=True)
class Chunk:
    """One compressed chunk in its shard: where, how many bytes, and the voxels (z, y, x) it decodes to."""

    offset: int
    length: int
    shape: Triple


def compressed_chunks(store: Store, entry: Entry, boxes: Sequence[Box]) -> list[Chunk]:
    """Return every chunk that the boxes touch, once for each box that touches it."""
    series = store.series(entry)
    chunks = []
    for level, start, size in boxes:
        shape = series.datasets[level].chunks
        ranges = [range(a // c, (a + n - 1) // c + 1) for a, n, c in zip(start, size, shape, strict=True)]
        for place in itertools.product(*ranges):
            offset, length, _ = series.rows[level][place].tolist()
            chunks.append(Chunk(offset, length, shape))
    return chunks


def raw_decode_s(store: Store, entry: Entry, boxes: Sequence[Box], *, from_file: bool = False) -> float:
    """Return the processor seconds of decoding, into one buffer, every chunk that the boxes touch.

    from_file: count the read of the compressed bytes from the (cached) file too, chunk by chunk; else they lie
    in memory, warm from being copied there. Raises ConfigError for a codec that only HDF5 can call here.
    """
    decode = direct_decoder(store.record["codec"])
    if decode is None:
        raise ConfigError(f"codec={store.record['codec']}: no floor to measure; only HDF5 can decode it here.")
    chunks = compressed_chunks(store, entry, boxes)
    counts = [int(np.prod(chunk.shape)) for chunk in chunks]
    buffer, content = np.empty(max(counts), dtype=np.int16), bytearray(max(chunk.length for chunk in chunks))
    target, source, view = buffer.ctypes.data, np.frombuffer(content, dtype=np.uint8).ctypes.data, memoryview(content)
    descriptor = store.series(entry).shard.descriptor
    kept = [b"" if from_file else os.pread(descriptor, chunk.length, chunk.offset) for chunk in chunks]
    sources = [source if from_file else np.frombuffer(item, dtype=np.uint8).ctypes.data for item in kept]
    fine = True
    began = time.thread_time()
    for chunk, address, count in zip(chunks, sources, counts, strict=True):
        if from_file:
            os.preadv(descriptor, [view[: chunk.length]], chunk.offset)
        fine &= decode(address, target, count)
    seconds = time.thread_time() - began
    assert fine, "a chunk that passed its checksum does not decode"
    return seconds

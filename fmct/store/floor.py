"""The floor under reading: what decoding the same chunks costs with nothing around it."""

import itertools
import os
import time
from collections.abc import Sequence

import numpy as np

from fmct.errors import ConfigError
from fmct.shapes import Triple
from fmct.store.codec import direct_decoder
from fmct.store.manifest import Entry
from fmct.store.reader import Store

Box = tuple[int, Triple, Triple]  # level, start, size


def compressed_chunks(store: Store, entry: Entry, boxes: Sequence[Box]) -> list[tuple[bytes, Triple]]:
    """Return (compressed bytes, chunk shape) of every chunk that the boxes touch, once for each box that touches it."""
    series = store.series(entry)
    chunks = []
    for level, start, size in boxes:
        shape = series.datasets[level].chunks
        ranges = [range(a // c, (a + n - 1) // c + 1) for a, n, c in zip(start, size, shape, strict=True)]
        for place in itertools.product(*ranges):
            offset, length, _ = series.rows[level][place].tolist()
            chunks.append((os.pread(series.shard.descriptor, length, offset), shape))
    return chunks


def raw_decode_s(store: Store, entry: Entry, boxes: Sequence[Box]) -> float:
    """Return the processor seconds of decoding, into one buffer, every chunk that the boxes touch.

    Raises ConfigError for a codec that only HDF5 can call here.
    """
    decode = direct_decoder(store.record["codec"])
    if decode is None:
        raise ConfigError(f"codec={store.record['codec']}: no floor to measure; only HDF5 can decode it here.")
    jobs, chunks = [], compressed_chunks(store, entry, boxes)
    buffer = np.empty(max(int(np.prod(shape)) for _, shape in chunks), dtype=np.int16)
    for content, shape in chunks:
        jobs.append((np.frombuffer(content, dtype=np.uint8).ctypes.data, int(np.prod(shape))))
    target = buffer.ctypes.data
    began = time.thread_time()
    fine = [decode(source, target, count) for source, count in jobs]
    seconds = time.thread_time() - began
    assert all(fine), "a chunk that passed its checksum does not decode"
    return seconds

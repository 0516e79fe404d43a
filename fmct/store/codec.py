"""Codecs of the store's chunks, and the checksum of a compressed chunk.

A chunk is a standard HDF5 chunk, so every HDF5 tool with hdf5plugin's filters reads a shard.
"""

import ctypes
import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fmct.errors import ConfigError

Decode = Callable[[int, int, int], bool]  # (address of the compressed chunk, address of the voxels, voxels) → fine?
_HEADER = 12  # bitshuffle's: decoded bytes (8, big endian), block bytes (4, big endian)
_CHECKED_BYTES = 1 << 22


def codecs() -> dict[str, dict[str, Any]]:
    """Return h5py's dataset arguments of every codec by name."""
    import hdf5plugin

    table: dict[str, Mapping[str, Any]] = {
        "none": {},
        "lz4": hdf5plugin.LZ4(),
        "shuffle-lz4": {"shuffle": True, **hdf5plugin.LZ4()},
        "bitshuffle-lz4": hdf5plugin.Bitshuffle(cname="lz4"),
        "bitshuffle-zstd": hdf5plugin.Bitshuffle(cname="zstd", clevel=3),
        "blosc-bitshuffle-lz4": hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.BITSHUFFLE),
        "blosc2-bitshuffle-lz4": hdf5plugin.Blosc2(cname="lz4", clevel=5, filters=hdf5plugin.Blosc2.BITSHUFFLE),
        "blosc2-bitshuffle-zstd": hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=hdf5plugin.Blosc2.BITSHUFFLE),
        "blosc2-shuffle-lz4hc": hdf5plugin.Blosc2(cname="lz4hc", clevel=9, filters=hdf5plugin.Blosc2.SHUFFLE),
        "shuffle-zstd": {"shuffle": True, **hdf5plugin.Zstd(clevel=3)},
    }
    return {name: dict(arguments) for name, arguments in table.items()}


def dataset_arguments(codec: str) -> dict[str, Any]:
    """Return h5py's dataset arguments of one codec. Raises ConfigError for an unknown name."""
    table = codecs()
    if codec not in table:
        raise ConfigError(f"codec={codec}: expected one of {', '.join(table)}.")
    return table[codec]


@functools.cache
def direct_decoder(codec: str) -> Decode | None:
    """Return a function that decodes one chunk of int16 in memory, or None where only HDF5 can decode `codec`.

    It is the floor that reading is measured against (fmct.store.floor). Reading goes through HDF5: its scatter into the
    box is faster than numpy's, which costs more than HDF5's own cache and allocation (1.4 and 1.6 times the floor).
    """
    symbols = {"bitshuffle-lz4": "bshuf_decompress_lz4", "bitshuffle-zstd": "bshuf_decompress_zstd"}
    if codec not in symbols or sys.byteorder != "little":
        return None
    import hdf5plugin

    try:
        library = ctypes.CDLL(str(hdf5plugin.get_config().registered_filters["bshuf"]))
        decompress = getattr(library, symbols[codec])
    except (OSError, AttributeError, KeyError):
        return None  # a build of hdf5plugin that keeps its symbols to itself
    decompress.restype = ctypes.c_int64
    decompress.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t]
    blocks: dict[int, int] = {}

    def decode(source: int, target: int, count: int) -> bool:
        """Decode one chunk from address to address."""
        block = blocks.get(count)
        if block is None:
            header = ctypes.string_at(source, _HEADER)
            block = blocks[count] = int.from_bytes(header[8:], "big") // 2
        return decompress(source + _HEADER, target, count, 2, block) > 0

    return decode


@functools.cache
def _multipliers() -> np.ndarray:
    """Return the fixed odd 64-bit multipliers of the checksum, one per word of a chunk."""
    stream = hashlib.shake_256(b"fmct chunk checksum").digest(_CHECKED_BYTES)
    return np.frombuffer(stream, dtype="<u8") | np.uint64(1)


def checksum(content: np.ndarray, length: int) -> int:
    """Return the 64-bit multilinear checksum of the first `length` bytes of a uint8 array that may go on behind them.

    Σ mᵢ·wordᵢ mod 2⁶⁴ over 8-byte words, the last one filled with zeros, mᵢ fixed, random and odd: any change within
    one word is found for certain, any other but for about one in 2⁶³ (Lemire and Kaser, 2014). 7 GB/s on one core where
    zlib's CRC-32 runs at 2.9: every read can afford it.
    """
    if length > _CHECKED_BYTES - 8:
        return int.from_bytes(hashlib.blake2b(content[:length].tobytes(), digest_size=8).digest(), "little")
    whole = length // 8
    table = _multipliers()
    total = int(np.dot(content[: 8 * whole].view("<u8"), table[:whole]))
    if length % 8:
        total += int.from_bytes(content[8 * whole : length].tobytes(), "little") * int(table[whole])
    return total & 0xFFFFFFFFFFFFFFFF

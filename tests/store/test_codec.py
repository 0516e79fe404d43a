"""The chunk checksum against a slow one, and the codec table."""

import numpy as np
import pytest

from fmct.errors import ConfigError
from fmct.store import codec
from fmct.store.codec_trial import Figure, choose, measure


def slow_checksum(content: bytes) -> int:
    padded = content + b"\0" * (-len(content) % 8)
    total = 0
    for number in range(len(padded) // 8):
        total += int.from_bytes(padded[8 * number : 8 * number + 8], "little") * int(codec._multipliers()[number])
    return total % 2**64


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 63, 1000, 4096])
def test_checksum_is_the_sum_it_says(length):
    content = np.random.default_rng(length).integers(0, 256, length + 8).astype(np.uint8)
    assert codec.checksum(content, length) == slow_checksum(content[:length].tobytes())


def test_every_single_byte_and_every_swap_of_words_changes_it():
    content = np.random.default_rng(0).integers(0, 256, 200).astype(np.uint8)
    right = codec.checksum(content, 197)
    for position in range(197):
        changed = content.copy()
        changed[position] ^= 1 << position % 8
        assert codec.checksum(changed, 197) != right
    swapped = content.copy()
    swapped[:8], swapped[8:16] = content[8:16], content[:8]
    assert codec.checksum(swapped, 197) != right


def test_long_chunks_are_checked_too():
    content = np.zeros(5 << 20, dtype=np.uint8)
    right = codec.checksum(content, len(content))
    content[-1] = 1
    assert codec.checksum(content, len(content)) != right


def test_an_unknown_codec_is_told():
    with pytest.raises(ConfigError, match="bitshuffle-lz4"):
        codec.dataset_arguments("zip")


def test_a_trial_measures_and_chooses():
    voxels = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40)).astype(np.int16)
    figure = measure([voxels], "bitshuffle-lz4", (16, 32, 32))
    assert 0.3 < figure.relative_size < 2
    assert figure.read_ms > 0
    figures = [
        Figure("raw", (32, 32, 32), 1.2, 1.0, 1.0),
        Figure("slow to write", (32, 32, 32), 0.4, 5.0, 50.0),
        Figure("fast", (32, 32, 32), 0.55, 10.0, 2.0),
        Figure("small", (16, 32, 32), 0.50, 10.4, 2.0),
        Figure("small, fewer", (32, 32, 32), 0.501, 10.4, 2.0),
        Figure("smaller", (32, 32, 32), 0.40, 20.0, 2.0),
    ]
    assert choose(figures).codec == "small, fewer"

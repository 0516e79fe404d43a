"""The floor decodes what reading decodes."""

import numpy as np
import pytest

from fmct.errors import ConfigError
from fmct.store import Store
from fmct.store.codec import direct_decoder
from fmct.store.floor import compressed_chunks, raw_decode_s
from tests.store.corpora import body, take_in, write_nifti


@pytest.mark.parametrize("codec", ["bitshuffle-lz4", "bitshuffle-zstd"])
def test_the_chunks_decode_to_the_voxels(tmp_path, codec):
    write_nifti(tmp_path / "in" / "a.nii.gz", body(1))
    take_in(tmp_path / "in", tmp_path / "store", codec=codec, chunk=[8, 16, 16])
    with Store.open(tmp_path / "store") as store:
        entry = store.entries[0]
        chunks = compressed_chunks(store, entry, [(0, (3, 2, 1), (10, 20, 14))])
        assert len(chunks) == 2 * 2 * 1
        decode = direct_decoder(codec)
        assert decode is not None
        out = np.empty((8, 16, 16), dtype=np.int16)
        content = np.fromfile(tmp_path / "store" / entry.shard, np.uint8, chunks[0].length, offset=chunks[0].offset)
        assert decode(content.ctypes.data, out.ctypes.data, out.size)
        assert np.array_equal(out, body(1)[:8, :16, :16])
        for from_file in (False, True):
            assert raw_decode_s(store, entry, [(0, (0, 0, 0), entry.shape)], from_file=from_file) > 0


def test_other_codecs_have_no_floor(tmp_path):
    write_nifti(tmp_path / "in" / "a.nii.gz", body(1))
    take_in(tmp_path / "in", tmp_path / "store", codec="shuffle-lz4")
    with Store.open(tmp_path / "store") as store, pytest.raises(ConfigError, match="no floor"):
        raw_decode_s(store, store.entries[0], [(0, (0, 0, 0), (1, 1, 1))])

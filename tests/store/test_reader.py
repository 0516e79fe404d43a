"""Reading boxes: equal to the voxels that went in, and never silently something else."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import fmct
from fmct import pyramid
from fmct.errors import ArtefactError, DataError
from fmct.store import Store, reader
from fmct.store.codec import codecs
from tests.store.corpora import body, fingerprints, take_in, write_corpus, write_nifti


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    write_nifti(folder / "in" / "a.nii.gz", body(1, (45, 70, 67)))
    write_nifti(folder / "in" / "b.nii.gz", body(2, (9, 33, 64)))
    take_in(folder / "in", folder / "store")
    return folder / "store"


def test_every_level_is_the_pyramid_of_what_went_in(store_path):
    with Store.open(store_path) as store:
        by_shape = {entry.shape: entry for entry in store.entries}
        for seed, shape in ((1, (45, 70, 67)), (2, (9, 33, 64))):
            entry = by_shape[shape]
            levels = pyramid.build(body(seed, shape), entry.spacing_mm)
            assert [level.factor for level in entry.levels] == [factor for factor, _ in levels]
            for number, (_, voxels) in enumerate(levels):
                assert entry.levels[number].shape == voxels.shape
                assert np.array_equal(store.read_level(entry, number), voxels)


def test_random_boxes_of_every_level_equal_slices(store_path):
    generator = np.random.default_rng(0)
    with Store.open(store_path) as store:
        for entry in store.entries:
            for number, level in enumerate(entry.levels):
                whole = store.read_level(entry, number)
                for _ in range(20):
                    start = [int(generator.integers(0, n)) for n in level.shape]
                    size = [int(generator.integers(1, n - a + 1)) for n, a in zip(level.shape, start, strict=True)]
                    box = store.read(entry, number, tuple(start), tuple(size))
                    slices = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
                    assert box.dtype == np.int16
                    assert np.array_equal(box, whole[slices])


def test_the_volume_is_the_scan_on_its_own_grid(store_path):
    with Store.open(store_path) as store:
        entry = next(e for e in store.entries if e.shape == (45, 70, 67))
        volume = store.volume(entry)
    assert volume.orientation == "SPL"
    assert np.array_equal(volume.voxels, body(1, (45, 70, 67)))
    np.testing.assert_allclose(volume.spacing, (3.0, 0.9, 0.8), rtol=1e-6)
    np.testing.assert_allclose(volume.world([0, 0, 0]), (50.0, 60.0, -70.0), atol=1e-4)


@pytest.mark.parametrize(
    ("level", "start", "size"),
    [
        (0, (-1, 0, 0), (2, 2, 2)),
        (0, (0, 0, 0), (46, 1, 1)),
        (0, (0, 0, 60), (1, 1, 8)),
        (99, (0, 0, 0), (1, 1, 1)),
        (0, (0, 0, 0), (0, 1, 1)),
    ],
)
def test_a_box_outside_is_an_error(store_path, level, start, size):
    with Store.open(store_path) as store, pytest.raises(DataError, match="entry"):
        store.read(next(e for e in store.entries if e.shape == (45, 70, 67)), level, start, size)


def test_a_store_travels_to_another_process_by_pickle_and_by_fork(store_path):
    store = Store.open(store_path)
    entry = store.entries[0]
    before = store.read(entry, 0, (0, 0, 0), (4, 5, 6))
    assert len(pickle.dumps(store)) < 500
    with pickle.loads(pickle.dumps(store)) as copy:
        assert np.array_equal(copy.read(copy.entries[0], 0, (0, 0, 0), (4, 5, 6)), before)
        assert copy.fingerprint() == store.fingerprint()
    child = os.fork()
    if child == 0:
        same = np.array_equal(store.read(entry, 0, (0, 0, 0), (4, 5, 6)), before)
        os._exit(0 if same and store._process == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0
    store.close()


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_any_flipped_byte_of_a_chunk_is_detected_and_named(tmp_path):
    write_nifti(tmp_path / "in" / "a.nii.gz", body(3))
    take_in(tmp_path / "in", tmp_path / "store")
    shard = tmp_path / "store" / "shards" / "00000.h5"
    generator = np.random.default_rng(0)
    with Store.open(tmp_path / "store") as store:
        entry = store.entries[0]
        store.read_level(entry, 0)
        rows = [(number, row) for number, table in enumerate(store.series(entry).rows) for row in table.reshape(-1, 3)]
    for number, (begin, length, _) in rows:
        for offset in {0, int(length) - 1, int(generator.integers(0, int(length)))}:
            flip(shard, int(begin) + offset)
            with Store.open(tmp_path / "store") as store, pytest.raises(ArtefactError) as caught:
                store.read_level(entry, number)
            assert "00000.h5" in str(caught.value)
            assert entry.id in str(caught.value)
            flip(shard, int(begin) + offset)
    with Store.open(tmp_path / "store") as store:
        store.verify(store.entries[0])


def test_a_shard_cut_short_or_gone_is_a_clear_error(tmp_path):
    write_nifti(tmp_path / "in" / "a.nii.gz", body(4))
    take_in(tmp_path / "in", tmp_path / "store")
    shard = tmp_path / "store" / "shards" / "00000.h5"
    content = shard.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 10):
        shard.write_bytes(content[:length])
        with Store.open(tmp_path / "store") as store, pytest.raises(ArtefactError, match=re.escape("00000.h5")):
            store.verify(store.entries[0])
    shard.unlink()
    with Store.open(tmp_path / "store") as store, pytest.raises(ArtefactError, match="no such shard"):
        store.read_level(store.entries[0], 0)
    with pytest.raises(ArtefactError, match="fmct ingest"):
        Store.open(tmp_path)


def test_transient_faults_of_the_file_system_are_retried(store_path, monkeypatch):
    real, faults = os.preadv, iter([OSError(5, "Input/output error"), OSError(116, "Stale file handle")])

    def flaky(*arguments):
        for fault in faults:
            raise fault
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", flaky)
    monkeypatch.setattr(reader.time, "sleep", lambda _: None)
    with Store.open(store_path) as store:
        entry = next(e for e in store.entries if e.shape == (9, 33, 64))
        assert np.array_equal(store.read_level(entry, 0), body(2, (9, 33, 64)))

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with Store.open(store_path) as store, pytest.raises(ArtefactError, match="cannot be read"):
        store.read_level(entry, 0)


@pytest.mark.parametrize("codec", sorted(codecs()))
def test_every_codec_gives_the_voxels_back(tmp_path, codec):
    write_nifti(tmp_path / "in" / "a.nii.gz", body(5))
    take_in(tmp_path / "in", tmp_path / "store", codec=codec, chunk=[8, 16, 16])
    with Store.open(tmp_path / "store") as store:
        assert np.array_equal(store.read_level(store.entries[0], 0), body(5))
        store.verify(store.entries[0])


def test_open_files_and_series_stay_few(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_OPEN_FILES", 2)
    monkeypatch.setattr(reader, "_OPEN_SERIES", 3)
    take_in(write_corpus(tmp_path / "in", 8), tmp_path / "store", shard_series=2)
    with Store.open(tmp_path / "store") as store:
        for _ in range(2):
            for entry in store.entries:
                assert store.read_level(entry, 0).shape == entry.shape
                assert len(store._shards) <= 2
                assert len(store._series) <= 3
    assert len([name for name in fingerprints(tmp_path / "store") if name.startswith("shards/")]) == 4


def test_chunks_that_lie_out_of_order_in_the_file_are_read(tmp_path):
    """HDF5 puts a small chunk (an edge of air) into a gap before its neighbours: found on these real scans."""
    samples = Path(fmct.__file__).parent / "samples/ct"
    take_in(samples, tmp_path / "STORE")
    backwards = 0
    with Store.open(tmp_path / "STORE") as store:
        for entry in store.entries:
            offsets = [rows[..., 0].astype(np.int64) for rows in store.series(entry).rows]
            backwards += sum(int((np.diff(level, axis=2) < 0).sum()) for level in offsets)
            for number, (_, voxels) in enumerate(pyramid.build(store.read_level(entry, 0), entry.spacing_mm)):
                assert np.array_equal(store.read_level(entry, number), voxels)
    assert backwards, "every chunk lies in order: these scans show nothing"

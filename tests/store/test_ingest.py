"""Ingest: everything is taken or refused with a reason, and running it again changes nothing."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest

from fmct.cli import main
from fmct.config import build, read_tree
from fmct.errors import ArtefactError, ConfigError, DataError
from fmct.store import Store, codec_trial, take
from fmct.store.ingest import IngestConfig, ingest, read_policy
from tests.store.corpora import body, fingerprints, take_in, write_corpus, write_key, write_nifti


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "in", 6)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """Return a store of the corpus, in shards of at most 4 series, that nothing interrupted."""
    store = tmp_path_factory.mktemp("finished") / "store"
    take_in(corpus, store, shard_series=4)
    return store


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_good_is_taken_and_the_rest_is_in_the_ledger(finished):
    with Store.open(finished) as store:
        assert len(store.entries) == 6
        assert len({entry.patient for entry in store.entries}) == 3
        assert [entry.shard for entry in store.entries] == ["shards/00000.h5"] * 4 + ["shards/00001.h5"] * 2
        voxels = {store.read_level(entry, 0).tobytes() for entry in store.entries}
        twin = next(e.id for e in store.entries if store.read_level(e, 0).tobytes() == body(0).tobytes())
    assert voxels == {body(seed).tobytes() for seed in range(6)}
    ledger = rows(finished / "ledger.jsonl")
    assert sorted(row["code"] for row in ledger) == ["duplicate-content", "implausible-hu", "not-an-image"]
    assert next(row for row in ledger if row["code"] == "duplicate-content")["numbers"]["same_as"] == twin
    mask = next(row for row in ledger if row["code"] == "implausible-hu")
    assert mask["numbers"]["distinct_values"] == 2
    assert mask["file"].endswith(".nii.gz")
    assert not (finished / "parts").exists()
    assert not (finished / "ingest.lock").exists()


def test_the_manifest_holds_what_an_audit_needs(finished):
    for row in rows(finished / "manifest.jsonl"):
        assert row["shape"] == [20, 40, 36]
        assert row["spacing_mm"] == pytest.approx([3.0, 0.9, 0.8], rel=1e-6)
        assert row["scale"] == 1.0
        assert row["max_error"] == 0.0
        assert row["value_range"][0] < -900 < 600 < row["value_range"][1]
        assert len(row["content_hash"]) == len(row["voxel_hash"]) == 64
        assert row["levels"][0]["factor"] == [1, 1, 1]
        # (slice, row, column) → RAS mm, as the file has it: its axes run L, P, S.
        expected = [[0, 0, -0.8, 50], [0, -0.9, 0, 60], [3, 0, 0, -70], [0, 0, 0, 1]]
        np.testing.assert_allclose(row["original_affine"], expected, atol=1e-5)
        assert "original_affine" not in row["facts"]


def test_the_record_says_which_codec_and_why(finished):
    record = json.loads((finished / "store.json").read_text())
    assert next(iter(record)) == "format"
    why = record["chosen_because"]
    chosen = [f for f in why["figures"] if f["codec"] == record["codec"] and f["chunk"] == record["chunk"]]
    others = [f for f in why["figures"] if f["codec"] not in ("none", record["codec"])]
    assert len(chosen) == 1
    assert len(others) >= 6
    assert chosen[0]["read_ms"] > 0
    assert "fastest" in why["conclusion"]
    assert why["measured_on"]


def test_again_changes_nothing_and_reads_nothing(corpus, finished, monkeypatch):
    before = fingerprints(finished)

    def never(*_):
        raise AssertionError("a pixel was read again")

    monkeypatch.setattr(take, "read_candidate", never)
    summary = take_in(corpus, finished, shard_series=4)
    assert (summary.new, summary.taken, summary.skipped) == (0, 6, 9)
    assert fingerprints(finished) == before


def test_new_scans_go_into_new_shards(corpus, finished, tmp_path):
    store, source = tmp_path / "store", tmp_path / "in"
    shutil.copytree(finished, store)
    write_nifti(source / "case_900" / "new.nii.gz", body(77))
    sealed = fingerprints(store / "shards")
    summary = take_in(source, store, shard_series=4)
    assert (summary.new, summary.taken) == (1, 7)
    assert {k: v for k, v in fingerprints(store / "shards").items() if k in sealed} == sealed
    with Store.open(store) as opened:
        assert opened.entries[-1].shard == "shards/00002.h5"
        assert np.array_equal(opened.read_level(opened.entries[-1], 0), body(77))


def test_workers_in_any_order_make_the_same_store(corpus, finished, tmp_path):
    write_key(tmp_path / "store")
    with ThreadPoolExecutor(4) as executor:
        config = IngestConfig(patient_regex=r"case_\d+", shard_series=4)
        ingest([corpus], tmp_path / "store", config=config, executor=executor)
    assert fingerprints(tmp_path / "store") == fingerprints(finished)


def test_the_process_pool_makes_the_same_store(corpus, finished, tmp_path):
    take_in(corpus, tmp_path / "store", shard_series=4, workers=2)
    assert fingerprints(tmp_path / "store") == fingerprints(finished)


def test_a_worker_imports_no_torch(corpus, finished):
    """It would be most of a worker's memory, and seconds of each one's start. Nor does a look at the store need it."""
    code = (
        "import sys, fmct.store.take, fmct.store.ingest\n"
        "from fmct.inspection.inspect import inspect_path\n"
        "assert not inspect_path(sys.argv[1]).faults\n"
        "assert not inspect_path(sys.argv[2]).faults\n"
        "sys.exit('torch' in sys.modules)"
    )
    scan = next(path for path in sorted(corpus.rglob("*.nii.gz")) if path.name != "mask.nii.gz")
    assert subprocess.run([sys.executable, "-c", code, str(finished), str(scan)], check=False).returncode == 0


def test_dask_makes_the_same_store(corpus, finished, tmp_path):
    from dask.distributed import Client, LocalCluster

    write_key(tmp_path / "store")
    config = IngestConfig(patient_regex=r"case_\d+", shard_series=4)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="inproc://"
        ) as cluster,
        Client(cluster) as client,
    ):
        ingest([corpus], tmp_path / "store", config=config, executor=client.get_executor())
    assert fingerprints(tmp_path / "store") == fingerprints(finished)


def test_refused_scans_are_tried_again_under_other_rules_only(tmp_path):
    source, store = tmp_path / "in", tmp_path / "store"
    values = np.abs(np.random.default_rng(0).normal(400.0, 90.0, (20, 40, 36))).astype(np.float32)
    write_nifti(source / "brain_mr.nii.gz", values)
    write_nifti(source / "chest.nii.gz", body(0))
    assert take_in(source, store).refused == {"implausible-hu": 1}
    with pytest.raises(ConfigError, match=r"read\.tilt: give"):
        take_in(source, store, read={"tilt": "resample"})
    summary = take_in(source, store, read={"modality_patterns": {"*_mr.*": "MR"}}, modality=["CT", "MR"])
    assert (summary.new, summary.taken, summary.refused) == (1, 2, {})
    with Store.open(store) as opened:
        entry = opened.entries[-1]
        assert entry.modality == "MR"
        error = np.abs(opened.volume(entry).voxels - values).max()
        assert error <= entry.max_error * (1 + 1e-5) + 1e-4
        assert 0 < entry.max_error <= entry.scale / 2 * 1.001


def test_those_who_share_a_scan_are_one_patient(tmp_path):
    source = tmp_path / "in"
    write_nifti(source / "case_001" / "a.nii.gz", body(1))
    write_nifti(source / "case_002" / "b.nii.gz", body(2))
    write_nifti(source / "case_003" / "a.nii.gz", body(1))
    write_nifti(source / "case_003" / "c.nii.gz", body(3))
    summary = take_in(source, tmp_path / "store")
    assert (summary.taken, summary.patients, summary.joined_patients) == (3, 2, 1)
    with Store.open(tmp_path / "store") as store:
        assert store.entries[0].patient == store.entries[2].patient != store.entries[1].patient
    before = fingerprints(tmp_path / "store")
    take_in(source, tmp_path / "store")
    assert fingerprints(tmp_path / "store") == before


def test_who_is_joined_across_splits_is_told(tmp_path):
    source, store = tmp_path / "in", tmp_path / "store"
    for case in ("case_001", "case_002"):
        write_nifti(source / case / "a.nii.gz", body(int(case[-1])))
    assert take_in(source, store).split_patients == 0
    with Store.open(store) as opened:
        first, second = (entry.patient for entry in opened.entries)
    (store / "splits.csv").write_text(f"patient,split\n{first},train\n{second},test\n", encoding="utf-8")
    write_nifti(source / "case_002" / "copy.nii.gz", body(1))
    summary = take_in(source, store)
    assert (summary.patients, summary.joined_patients, summary.split_patients) == (1, 1, 1)
    assert "two splits" in str(summary)


def test_a_series_larger_than_the_budget_is_refused_with_numbers(corpus, tmp_path):
    summary = take_in(corpus, tmp_path / "store", budget_gb=12 * 20_000 / 1e9)
    assert summary.refused["too-large"] == 8
    row = next(r for r in rows(tmp_path / "store" / "ledger.jsonl") if r["code"] == "too-large")
    assert 28_800 in row["numbers"].values() or [36, 40, 20] in row["numbers"].values()
    with pytest.raises(ConfigError, match="budget"):
        read_policy(IngestConfig(budget_gb=0.001, read={"max_voxels": 10**9}))


def test_a_reader_that_fails_is_one_line_and_tried_again(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(take, "read_candidate", lambda *_: 1 // 0)
        summary = take_in(corpus, tmp_path / "store")
    assert summary.taken == 0
    assert summary.refused["reader-failed"] == 8
    summary = take_in(corpus, tmp_path / "store")
    assert (summary.taken, "reader-failed" in summary.refused) == (6, False)


def test_a_full_disk_stops_with_one_paragraph_and_loses_nothing(corpus, tmp_path, monkeypatch):
    store = tmp_path / "store"
    real, calls = os.replace, []

    def full(source, target):
        if str(target).endswith(".h5"):
            calls.append(target)
            if len(calls) == 3:
                raise OSError(28, "No space left on device")
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(DataError, match="No space left"):
            take_in(corpus, store, shard_series=4)
    assert not [p for p in store.rglob(".*tmp*")]
    take_in(corpus, store, shard_series=4)
    assert len(rows(store / "manifest.jsonl")) == 6


def test_mistakes_are_told(corpus, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        take_in(tmp_path / "nowhere", tmp_path / "store")
    with pytest.raises(DataError, match="nothing to ingest"):
        ingest([], tmp_path / "store")
    with pytest.raises(ConfigError, match="codec"):
        take_in(corpus, tmp_path / "s2", codec="gzip")
    with pytest.raises(DataError, match="other files"):
        take_in(corpus, corpus)
    with pytest.raises(ConfigError, match="outside the store"):
        take_in(corpus, tmp_path / "s3", key_file=str(tmp_path / "s3" / "key"))


def test_an_old_store_keeps_its_key_and_codec(corpus, finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    with pytest.raises(ConfigError, match="One store has one of each"):
        take_in(corpus, store, codec="lz4")
    config = IngestConfig(workers=1)
    store.with_name("store.key").write_text("ab" * 32)
    with pytest.raises(DataError, match="fingerprint"):
        ingest([corpus], store, config=config)
    store.with_name("store.key").unlink()
    with pytest.raises(DataError, match="no such key"):
        ingest([corpus], store, config=config)


def test_a_lost_shard_is_an_error_not_a_new_start(corpus, finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    (store / "shards" / "00000.h5").unlink()
    with pytest.raises(ArtefactError, match="is gone"):
        take_in(corpus, store, shard_series=4)


def test_an_empty_folder_and_a_loop_of_links_are_fine(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "loop").symlink_to(source)
    (source / "empty.dcm").touch()
    summary = take_in(source, tmp_path / "store")
    assert summary.taken == 0
    assert sum(summary.refused.values()) == 1
    assert "0 series" in str(summary)


def test_a_scan_with_flipped_axes_keeps_both_its_grids(tmp_path):
    voxels = body(8)
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0)[::-1, ::-1], np.diag([0.8, 0.9, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in" / "ras.nii.gz")
    take_in(tmp_path / "in", tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        entry = store.entries[0]
        assert np.array_equal(store.read_level(entry, 0), voxels)
        np.testing.assert_allclose(
            np.array(entry.original_affine)[:3, :3], [[0, 0, 0.8], [0, 0.9, 0], [3, 0, 0]], atol=1e-6
        )
        assert store.volume(entry).orientation == "SPL"


def test_the_verb_takes_configs_and_tells_mistakes(corpus, tmp_path, capsys):
    write_key(tmp_path / "store")
    assert main(["ingest", str(corpus), str(tmp_path / "store"), "config=store/ct_pt", "workers=1"]) == 0
    printed = capsys.readouterr()
    assert "6 series" in printed.out
    assert "duplicate-content" in printed.out
    assert "series to read" in printed.err
    assert json.loads((tmp_path / "store" / "store.json").read_text())["modalities"] == ["CT", "PT"]
    assert main(["ingest", str(corpus)]) == 2
    assert main(["ingest", str(corpus), str(tmp_path / "s2"), "tilted=yes"]) == 2
    assert "tilt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ingest", "--help"])
    assert "fmct ingest scans/ STORE" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["store/ct", "store/ct_pt", "store/mr"])
def test_the_shipped_configs_are_whole(name):
    config = build(IngestConfig, read_tree([name]))
    assert read_policy(config).max_voxels == pytest.approx(4e9 / 12, rel=1e-6)
    assert [config.codec, config.chunk] == json.loads(codec_trial.FIGURES.read_text())["chosen"]


def test_a_table_names_the_patients_and_its_slips_are_counted(corpus, tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("file,patient\ncase_000,A\ncase_001,A\ncase_002,B\ncase_999,C\n")
    summary = take_in(corpus, tmp_path / "store", patients=str(table), patient_regex="")
    assert (summary.taken, summary.patients, summary.unused_patients) == (6, 2, 1)
    assert "1 rows of the patients' table" in str(summary)

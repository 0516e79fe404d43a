"""An ingest that is killed, at any moment, ends as if it had not been.

The soak of 50 kills: python -m pytest tests/store/test_killed_ingest.py -m slow
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fmct.store import Store
from tests.store.corpora import fingerprints, take_in, write_corpus, write_key

COMMAND = "import sys; from fmct.cli import main; sys.exit(main(sys.argv[1:]))"
SETTINGS = ["shard_series=4", r"patient_regex=case_\d+", "report_every_s=1000"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("killed") / "in", 10)


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    store = tmp_path_factory.mktemp("unbroken") / "store"
    take_in(corpus, store, shard_series=4)
    return fingerprints(store)


def start(corpus, store, workers):
    arguments = ["ingest", str(corpus), str(store), f"workers={workers}", *SETTINGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def kill_at_random_moments(corpus, store, *, kills, seed, workers):
    """Start the ingest and kill it `kills` times, each time some moment after it began to write; then let it end."""
    generator = random.Random(seed)
    write_key(store)
    for _ in range(kills):
        process = start(corpus, store, workers)
        deadline = time.monotonic() + 60
        while not (store / "ingest.lock").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start(corpus, store, workers)
    assert process.wait(timeout=120) == 0


def check(store, unbroken):
    assert fingerprints(store) == unbroken
    with Store.open(store) as opened:
        assert len({entry.id for entry in opened.entries}) == len(opened.entries) == 10
        for entry in opened.entries:
            opened.verify(entry)


def test_a_few_kills_leave_no_trace(corpus, unbroken, tmp_path):
    kill_at_random_moments(corpus, tmp_path / "store", kills=4, seed=1, workers=1)
    check(tmp_path / "store", unbroken)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [1, 2])
def test_fifty_kills_leave_no_trace(corpus, unbroken, tmp_path, workers):
    for round_number in range(5):
        store = tmp_path / f"store_{round_number}"
        kill_at_random_moments(corpus, store, kills=5, seed=100 * workers + round_number, workers=workers)
        check(store, unbroken)
        shutil.rmtree(store)


class Died(BaseException):
    """Stands for a kill: no handler of ours catches it."""


@pytest.mark.parametrize("moment", range(0, 106, 9))
def test_a_stop_at_any_system_call_is_mended(corpus, unbroken, tmp_path, monkeypatch, moment):
    """Stop at the moment-th fsync, rename or removal: between any two of them a kill can fall."""
    calls = 0

    def counted(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Died  # nothing works any more, as after a kill: handlers that tidy up find out too
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name)))
        with pytest.raises(Died):
            take_in(corpus, tmp_path / "store", shard_series=4)
    lock = tmp_path / "store" / "ingest.lock"
    if lock.exists():  # it names this process, which lives on
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "started": "another life"}))
    take_in(corpus, tmp_path / "store", shard_series=4)
    assert fingerprints(tmp_path / "store") == unbroken


def test_a_line_that_a_kill_cut_short_is_written_anew(corpus, unbroken, tmp_path):
    store = tmp_path / "store"
    take_in(corpus, store, shard_series=4)
    for name in ("manifest.jsonl", "ledger.jsonl"):
        lines = (store / name).read_bytes()
        (store / name).write_bytes(lines + b'{"id":"cut sho')
    take_in(corpus, store, shard_series=4)
    with Store.open(store) as opened:
        assert len(opened.entries) == 10
    from tests.store.corpora import body, write_nifti

    write_nifti(tmp_path / "more" / "case_009" / "x.nii.gz", body(99))
    take_in(tmp_path / "more", store, shard_series=4)
    assert [json.loads(line)["id"] for line in (store / "manifest.jsonl").read_text().splitlines()][-1]
    with Store.open(store) as opened:
        assert len(opened.entries) == 11

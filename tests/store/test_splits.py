"""Splits: by patient, the same for ever, never rewritten."""

from collections import Counter
from dataclasses import replace

import pytest

from fmct.cli import main
from fmct.errors import ConfigError, DataError
from fmct.store import Store
from fmct.store.manifest import read_manifest, write_manifest
from fmct.store.splits import SPLITS, read_splits, split
from tests.store.corpora import take_in, write_corpus

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    take_in(write_corpus(folder / "in", 2), folder / "store")
    return folder / "store"


@pytest.fixture
def make_store(template, tmp_path):
    """Return a function that makes a store of `patients` patients with two series each, and a modality by number."""

    def make(patients: int) -> Store:
        path = tmp_path / "store"
        path.mkdir(exist_ok=True)
        (path / "store.json").write_bytes((template / "store.json").read_bytes())
        entry = read_manifest(template)[0]
        write_manifest(
            path,
            [
                replace(entry, id=f"s{n}-{k}", patient=f"p{n:05d}", modality="CT" if n % 4 else "PT")
                for n in range(patients)
                for k in range(2)
            ],
        )
        return Store.open(path)

    return make


def test_shares_come_out_and_both_series_of_a_patient_go_together(make_store):
    store = make_store(3000)
    splits = split(store, fractions=SHARES)
    counts = Counter(splits.values())
    for name, share in SHARES.items():
        assert abs(counts[name] / 3000 - share) < 0.03
    of_entry = store.splits()
    assert len(of_entry) == 6000
    assert all(of_entry[f"s{n}-0"] == of_entry[f"s{n}-1"] == splits[f"p{n:05d}"] for n in range(3000))


def test_a_patient_keeps_the_split_whoever_else_is_there(make_store):
    few = split(make_store(20), fractions=SHARES)
    (make_store(20).path / SPLITS).unlink()
    many = split(make_store(200), fractions=SHARES)
    assert all(many[patient] == place for patient, place in few.items())
    (make_store(200).path / SPLITS).unlink()
    assert split(make_store(200), fractions=SHARES, seed=1) != many


@pytest.mark.parametrize(("method", "by"), [("hash", None), ("stratified", "modality")])
def test_rows_are_appended_and_never_rewritten(make_store, method, by):
    store = make_store(30)
    split(store, fractions=SHARES, method=method, by=by)
    first = (store.path / SPLITS).read_text()
    split(store, fractions={"train": 0.1, "validation": 0.1, "test": 0.8}, method=method, by=by, seed=9)
    assert (store.path / SPLITS).read_text() == first
    grown = make_store(40)
    splits = split(grown, fractions=SHARES, method=method, by=by)
    second = (store.path / SPLITS).read_text()
    assert second.startswith(first)
    assert len(second.splitlines()) == 41
    assert len(splits) == 40


def test_strata_have_the_shares_each(make_store):
    store = make_store(200)
    splits = split(store, fractions=SHARES, method="stratified", by="modality")
    of = {entry.patient: entry.modality for entry in store.entries}
    for modality, count in Counter(of.values()).items():
        got = Counter(place for patient, place in splits.items() if of[patient] == modality)
        for name, share in SHARES.items():
            assert abs(got[name] - share * count) <= 1


def test_strata_may_come_from_a_table(make_store, tmp_path):
    store = make_store(10)
    table = tmp_path / "strata.csv"
    table.write_text("patient,stratum\n" + "".join(f"p{n:05d},{n % 2}\n" for n in range(10)))
    splits = split(store, fractions={"a": 0.6, "b": 0.4}, method="stratified", by=str(table))
    assert Counter((n % 2, splits[f"p{n:05d}"]) for n in range(10)) == {
        (0, "a"): 3,
        (1, "a"): 3,
        (0, "b"): 2,
        (1, "b"): 2,
    }
    table.write_text("patient,stratum\np00000,1\n")
    (store.path / SPLITS).unlink()
    with pytest.raises(ConfigError, match="no row for 9 patients"):
        split(store, fractions=SHARES, method="stratified", by=str(table))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"fractions": {"train": 0.5}}, "sum to 1"),
        ({"fractions": {"train": 1.5, "test": -0.5}}, "sum to 1"),
        ({"fractions": {"a,b": 1.0}}, "usable name"),
        ({"fractions": SHARES, "method": "random"}, "method=random"),
        ({"fractions": SHARES, "method": "stratified"}, "by="),
        ({"fractions": SHARES, "method": "stratified", "by": "colour"}, "by=colour"),
    ],
)
def test_mistakes_are_told(make_store, arguments, text):
    with pytest.raises(ConfigError, match=text):
        split(make_store(3), **arguments)


def test_a_damaged_record_is_told_and_other_names_are_refused(make_store):
    store = make_store(3)
    path = store.path / SPLITS
    path.write_text("patient,split\np00000,train\np00000,test\n")
    with pytest.raises(DataError, match="two splits"):
        read_splits(store.path)
    path.write_text("patient,split\np00000,\n")
    with pytest.raises(DataError, match="empty"):
        read_splits(store.path)
    path.write_text("\ufeffpatient,split\np00000,holdout\n", encoding="utf-8")
    assert read_splits(store.path) == {"p00000": "holdout"}
    with pytest.raises(ConfigError, match="holdout"):
        split(store, fractions=SHARES)


def test_the_verb_prints_counts(make_store, capsys):
    store = make_store(30)
    assert main(["split", str(store.path), "fractions.train=0.5", "fractions.validation=0", "fractions.test=0.5"]) == 0
    printed = capsys.readouterr().out
    assert "30 new rows" in printed
    assert main(["split", str(store.path)]) == 0
    assert "0 new rows" in capsys.readouterr().out
    assert main(["split"] + [str(store.path)] * 2) == 2

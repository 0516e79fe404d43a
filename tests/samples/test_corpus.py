"""The demo's corpus: everything real comes in, masks stay out, and no held-out person is trained on."""

import csv
import json
from pathlib import Path

import pytest

from fmct.cli import main
from fmct.samples import corpus
from fmct.store import Store
from fmct.store.pool import Inline


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "store"
    corpus.make_store(path, executor=Inline())
    return Store.open(path)


def test_every_scan_is_taken_and_every_mask_refused_by_its_values(store):
    assert len(store.entries) == 37
    assert len({entry.patient for entry in store.entries}) == 35
    ledger = [json.loads(line) for line in (store.path / "ledger.jsonl").read_text().splitlines()]
    assert {(row["code"], Path(row["file"]).name) for row in ledger} == {("implausible-hu", "ct_gtv.nii.gz")}
    assert len(ledger) == 30


def test_the_held_out_people_are_whole_and_never_trained_on(store):
    splits = store.splits()
    held_out = corpus.held_out_patients()
    assert len(set(held_out)) == 12
    with open(f"{store.path}.sources.csv", encoding="utf-8", newline="") as file:
        files = {row["id"]: row["file"] for row in csv.DictReader(file)}
    test = [entry for entry in store.entries if entry.patient in held_out]
    # The second thigh scan of one of them goes with that person.
    assert len(test) == 13
    assert any(files[entry.id].endswith("thigh_nc_sts033.nii.gz") for entry in test)
    assert {entry.id for entry in test} == {name for name, split in splits.items() if split == "test"}
    assert len(splits) == len(store.entries)


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert main(["demo", "--quick", "--output", str(tmp_path)]) == 2
    assert "Choose another" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]

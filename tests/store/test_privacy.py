"""Nothing that names a person leaves the site: a planted patient is looked for in every byte of every artefact."""

import gzip
import json

import numpy as np
import pytest

from fmct.cli import main
from fmct.store import Store
from tests.io.dicom_writer import write_series
from tests.store.corpora import body, write_nifti

CANARIES = ("ZZPHI", "CANARY", "MRN777123", "19570401", "Kanarienvogel", "zzphi")


def plant(dataset, number):
    dataset.PatientName = "ZZPHI^CANARY"
    dataset.PatientID = "MRN777123"
    dataset.PatientBirthDate = "19570401"
    dataset.StudyDate = "19570401"
    dataset.InstitutionName = "Kanarienvogel"
    dataset.StudyDescription = "CANARY study"
    dataset.SeriesDescription = "ZZPHI head"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return (store, text of the terminal) of an ingest whose folders, files and headers name a patient."""
    folder = tmp_path_factory.mktemp("privacy")
    source = folder / "ZZPHI_CANARY_MRN777123"
    write_series(source / "CANARY_19570401", body(1) + 0, change=plant, name="zzphi{:04d}.dcm")
    write_series(source / "CANARY_short", body(2)[:3], change=plant, name="zzphi{:04d}.dcm")
    write_nifti(source / "zzphi_scan.nii.gz", body(3))
    write_nifti(source / "zzphi_mask.nii.gz", (body(3) > 0).astype(np.int16))
    write_nifti(source / "zzphi_copy.nii.gz", body(3))
    (source / "ZZPHI_report.txt").write_text("Patient ZZPHI CANARY")
    broken = gzip.compress(b"ZZPHI CANARY" * 50)
    (source / "zzphi_broken.nii.gz").write_bytes(broken)
    return folder, source


def test_no_artefact_and_no_line_of_output_names_the_patient(planted, capsys):
    folder, source = planted
    store = folder / "store"
    assert main(["ingest", str(source), str(store), "workers=1", "patient_regex=ZZPHI_[A-Z]+"]) == 0
    assert main(["split", str(store)]) == 0
    printed = capsys.readouterr()
    artefacts = {str(p.relative_to(folder)): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    assert {"store/manifest.jsonl", "store/ledger.jsonl", "store/splits.csv", "store/shards/00000.h5"} <= set(artefacts)
    artefacts["terminal"] = (printed.out + printed.err).encode()
    for name, content in artefacts.items():
        for canary in CANARIES:
            assert canary.encode() not in content, f"{canary} in {name}"
            assert canary.encode("utf-16-le") not in content, f"{canary} in {name}"
    ledger = [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]
    codes = {row["code"] for row in ledger}
    assert {"too-few-slices", "implausible-hu", "duplicate-content", "not-an-image"} <= codes
    with Store.open(store) as opened:
        assert len(opened.entries) == 2


def test_the_sources_table_outside_the_store_tells_who_is_who(planted):
    folder, source = planted
    table = folder / "store.sources.csv"
    assert table.stat().st_mode & 0o077 == 0
    assert (folder / "store.key").stat().st_mode & 0o077 == 0
    rows = dict(line.split(",")[::2] for line in table.read_text().splitlines())
    with Store.open(folder / "store") as opened:
        files = [rows[entry.id] for entry in opened.entries]
    assert sorted(files) == sorted([str(source / "CANARY_19570401"), str(source / "zzphi_copy.nii.gz")])

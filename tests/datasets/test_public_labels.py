"""RSNA 2019 ICH and CQ500, as their owners ship them, in tiny: DICOM folders, label files, published splits."""

import csv
from pathlib import Path

import pytest

from fmct.cli import main
from fmct.datasets import cq500, rsna_ich
from fmct.datasets.published_splits import published_splits
from fmct.datasets.stored_scans import StoredScan, stored_scans
from fmct.errors import DataError
from fmct.store.ingest import IngestConfig, ingest
from tests.datasets.public_sets import SLICES, write_scan


@pytest.fixture(scope="module")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return (stage_2_train.csv, folder of slices, store): three series, as RSNA's flat folder has them."""
    root = tmp_path_factory.mktemp("rsna")
    folder = root / "stage_2_train"
    folder.mkdir()
    rows = []
    for number in range(3):
        names = [f"ID_{number}{k:08x}" for k in range(SLICES)]
        write_scan(
            folder, number, f"ID_p{number}", names=names, series=f"1.2.{number}.1", study=f"ID_5{number}d3458f56"
        )
        for k, name in enumerate(names):
            bleeding = number == 0 and k in (3, 4)
            labelled = not (number == 2 and k == 5)  # one slice of the third series is not in the file
            for finding in rsna_ich.FINDINGS if labelled else ():
                positive = bleeding and finding in ("subdural", "any")
                rows.append((f"{name}_{finding}", int(positive)))
    rows.append(rows[7])  # the published file repeats some lines
    labels = root / "stage_2_train.csv"
    labels.write_text("ID,Label\n" + "".join(f"{name},{value}\n" for name, value in rows))
    store = root / "store"
    assert ingest([folder], store, config=IngestConfig(workers=1)).taken == 3
    return labels, folder, store


READERS = [f"{reader}:{finding}" for reader in cq500.READERS for finding in cq500.FINDINGS]


def reads(votes: dict[int, dict[str, str]]) -> str:
    """Return reads.csv with three votes, such as 110, a patient and finding; 000 where nothing is said."""
    lines = [",".join(["name", "Category", *READERS])]
    for number, said in votes.items():
        cells = [said.get(column[3:], "000")[int(column[1]) - 1].strip() for column in READERS]
        lines.append(",".join([f"CQ500-CT-{number}", "B1", *cells]))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def cq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return (reads.csv, folder, store): patient 0 with two series, patient 66 with one, in CQ500's folders."""
    root = tmp_path_factory.mktemp("cq500")
    folder = root / "CQ500"
    for seed, (number, series) in enumerate([(0, "CT Plain"), (0, "CT PLAIN THIN"), (66, "CT 5mm")]):
        place = folder / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / series
        place.mkdir(parents=True)
        names = [f"CT{k:06d}" for k in range(SLICES)]
        write_scan(place, 10 + seed, f"CQ500-CT-{number}", names=names, series=f"1.3.{seed}", study=f"1.4.{number}")
    labels = root / "reads.csv"
    labels.write_text(reads({0: {"ICH": "110", "SDH": "100", "IVH": "1 0"}, 66: {"MidlineShift": "111"}}))
    store = root / "store"
    assert ingest([folder], store, config=IngestConfig(workers=1)).taken == 3
    return labels, folder, store


def test_a_series_of_rsna_has_what_a_slice_of_it_has(rsna: tuple[Path, Path, Path]) -> None:
    labels, folder, store = rsna
    rows = rsna_ich.label_scans(stored_scans(folder, store), rsna_ich.read_slice_labels(labels))
    found = {scan.found.patient: values for scan, values in rows}
    assert found["ID_p0"] == {**dict.fromkeys(rsna_ich.FINDINGS, 0.0), "subdural": 1.0, "any": 1.0}
    assert found["ID_p1"] == dict.fromkeys(rsna_ich.FINDINGS, 0.0)
    assert found["ID_p2"] == dict.fromkeys(rsna_ich.FINDINGS)  # unknown, since a slice has no label


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ID_1_subdural,2", "expected ID_SLICE_FINDING"),
        ("ID_1_haematoma,1", "expected ID_SLICE_FINDING"),
        ("ID_1_any,0", "any is 0"),
        ("ID_1_subdural,0", "both 0 and 1"),
    ],
)
def test_a_faulty_slice_label_is_explained(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "stage_2_train.csv"
    kinds = {finding: int(finding == "subdural") for finding in rsna_ich.FINDINGS[:-1]}
    rows = [f"ID_1_{finding},{value}" for finding, value in kinds.items()]
    if "any" not in line:
        rows.append("ID_1_any,1")
    path.write_text("\n".join(["ID,Label", *rows, line]) + "\n")
    with pytest.raises(DataError, match=told):
        rsna_ich.read_slice_labels(path)


def test_three_readers_decide_by_majority_and_an_empty_vote_is_unknown(cq: tuple[Path, Path, Path]) -> None:
    labels = cq500.read_reads(cq[0])
    assert labels[0]["ICH"] == 1.0  # 1 1 0
    assert labels[0]["SDH"] == 0.0  # 1 0 0
    assert labels[0]["IVH"] is None  # 1, empty, 0
    assert labels[66]["MidlineShift"] == 1.0
    assert labels[66]["ICH"] == 0.0


def test_every_series_of_a_patient_of_cq500_has_the_patients_labels(cq: tuple[Path, Path, Path]) -> None:
    labels, folder, store = cq
    rows = cq500.label_scans(stored_scans(folder, store), cq500.read_reads(labels))
    by_patient: dict[str, list[float | None]] = {}
    for scan, values in rows:
        by_patient.setdefault(scan.entry.patient, []).append(values["ICH"])
    assert sorted(by_patient.values()) == [[0.0], [1.0, 1.0]]  # 3 series are 2 patients


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda text: text.replace("CQ500-CT-66", "CQ500-CT-0"), "earlier line"),
        (lambda text: text.replace("CQ500-CT-66", "patient"), "no name such as"),
        (lambda text: text.replace("R2:ICH", "R2:ich"), "no column R2:ICH"),
        (lambda text: text.replace("B1,1", "B1,2", 1), "a vote is 0, 1 or empty"),
        (lambda text: text.replace(",", ";"), "semicolons"),
    ],
)
def test_a_faulty_reads_file_is_explained(cq: tuple[Path, Path, Path], tmp_path: Path, edit: object, told: str) -> None:
    path = tmp_path / "reads.csv"
    path.write_text(edit(cq[0].read_text()))
    with pytest.raises(DataError, match=told):
        cq500.read_reads(path)


def test_a_folder_and_a_header_that_name_two_patients_are_refused(cq: tuple[Path, Path, Path]) -> None:
    _, folder, store = cq
    scan = next(stored_scans(folder, store))
    other = StoredScan(scan.entry, type(scan.found)(**{**vars(scan.found), "patient": "CQ500-CT-66"}))
    with pytest.raises(DataError, match="header says CQ500-CT-66"):
        cq500.label_scans([other], {0: {}})


def test_the_command_writes_pseudonyms_labels_and_splits(
    cq: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, folder, store = cq
    for split, number in (("train", 0), ("test", 66)):
        path = f"/data/CQ500/CQ500CT{number} CQ500CT{number}/Unknown Study/CT Plain/0_Plain_2_Tilt_1.nii.gz"
        (tmp_path / f"{split}.csv").write_text(f"img_path,ICH\n{path},1\n")
    out = tmp_path / "labels.csv"
    words = ["curate", "cq500", *map(str, (labels, folder, store, out))]
    assert main([*words, *(w for s in ("train", "test") for w in ("--split", f"{s}={tmp_path / s}.csv"))]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [sorted(row["ICH"] for row in rows), {row["IVH"] for row in rows}] == [["0", "1", "1"], {"", "0"}]
    assert "CQ500" not in out.read_text()
    splits = dict(line.split(",") for line in (tmp_path / "labels_splits.csv").read_text().splitlines()[1:])
    positive = {row["patient"] for row in rows if row["ICH"] == "1"}
    assert splits == {p: "train" if p in positive else "test" for p in {row["patient"] for row in rows}}
    assert "3 series of 2 patients" in capsys.readouterr().out


def test_a_published_split_of_rsna_is_met_by_study(rsna: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, folder, store = rsna
    scans = list(stored_scans(folder, store))
    (tmp_path / "train.csv").write_text("img_path,any\n/data/ID_50d3458f56.nii.gz,1\n/data/ID_51d3458f56.nii.gz,0\n")
    splits = published_splits({"train": tmp_path / "train.csv"}, scans)
    named = {scan.entry.patient for scan in scans if scan.found.patient in ("ID_p0", "ID_p1")}
    assert splits == dict.fromkeys(sorted(named), "train")


def test_a_patient_in_two_published_splits_is_refused(cq: tuple[Path, Path, Path], tmp_path: Path) -> None:
    scans = list(stored_scans(cq[1], cq[2]))
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("img_path\nCQ500CT0 CQ500CT0/x.nii.gz\n")
    with pytest.raises(DataError, match="made by series, not by patient"):
        published_splits({s: tmp_path / f"{s}.csv" for s in ("train", "test")}, scans)


def test_another_folder_than_the_ingested_one_is_told(
    rsna: tuple[Path, Path, Path], cq: tuple[Path, Path, Path]
) -> None:
    with pytest.raises(DataError, match="none of its scans"):
        list(stored_scans(cq[1], rsna[2]))

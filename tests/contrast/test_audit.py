"""The audit of headers: disagreement, labels by id, resuming, the report, and what a store does with its table."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from fmct.cli import main
from fmct.contrast.audit import COLUMNS, audit_contrast, read_truth
from fmct.contrast.audit_report import summarise, write_audit_report
from fmct.contrast.gate import ContrastCall
from fmct.contrast.header import published_rule
from fmct.contrast.known_scans import judge_known_scans, report
from fmct.contrast.known_scans import summarise as summarise_known
from fmct.data.sampler import StoreConfig, meets, select
from fmct.errors import ConfigError, DataError
from fmct.store.reader import Store
from fmct.store.splits import split
from fmct.volume import Volume
from tests.io.dicom_writer import write_series
from tests.store.corpora import body, take_in, write_nifti


class MeanGate:
    """Takes what is bright for enhanced; refuses to say when it was called more often than allowed."""

    def __init__(self, most: int = 99) -> None:
        self.calls, self.most = 0, most

    def predict(self, volume: Volume) -> ContrastCall:
        self.calls += 1
        if self.calls > self.most:
            raise KeyboardInterrupt
        bright = float(volume.voxels[volume.voxels > -200].mean()) > 200
        return ContrastCall(0.9 if bright else 0.2, None, None, "yes" if bright else "no", [], baseline_probability=0.6)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three DICOM series (an agent named, denied, and no word) and a NIfTI file; those named `bright` are enhanced."""
    folder = tmp_path_factory.mktemp("scans")
    shape = (12, 24, 26)
    for number, (name, agent) in enumerate((("bright-no", "NO"), ("dark-yes", "ISOVUE"), ("bright-silent", None))):
        voxels = body(number, shape).astype(float)
        if name.startswith("bright"):
            voxels[voxels > -200] += 300

        def change(dataset, _number, *, agent=agent, patient=f"P{number}"):
            dataset.PatientID = patient
            if agent is not None:
                dataset.ContrastBolusAgent = agent

        write_series(folder / name, voxels, step_mm=3.0, change=change)
    write_nifti(folder / "dark.nii.gz", body(7, shape))
    return folder


def test_rows_decisions_and_disagreement(scans: Path, tmp_path: Path) -> None:
    audit = audit_contrast([scans], tmp_path / "out", gate=MeanGate(), model="m")
    rows = {row["series"]: row for row in audit.rows}
    assert {name: (r["header"], r["decision"], r["disagreement"]) for name, r in rows.items()} == {
        "bright-no": ("no", "yes", "yes"),
        "dark-yes": ("yes", "no", "yes"),
        "bright-silent": ("absent", "yes", ""),
        "dark.nii.gz": ("absent", "no", ""),
    }
    assert rows["dark-yes"]["tags"] == "ContrastBolusAgent"
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    assert all(row["reason"] for row in table)


def test_without_a_model_the_header_decides(scans: Path, tmp_path: Path) -> None:
    rows = audit_contrast([scans], tmp_path / "out").rows
    decisions = {row["series"]: row["decision"] for row in rows}
    expected = {"bright-no": "no", "dark-yes": "yes", "bright-silent": "uncertain", "dark.nii.gz": "uncertain"}
    assert decisions == expected
    content = summarise(rows)
    assert content["truth"] == ""
    assert content["missing_or_wrong"]["estimate"] is None


def test_killed_audit_goes_on_and_another_model_is_refused(scans: Path, tmp_path: Path) -> None:
    first = MeanGate(most=2)
    with pytest.raises(KeyboardInterrupt):
        audit_contrast([scans], tmp_path / "out", gate=first, model="m")
    second = MeanGate()
    again = audit_contrast([scans], tmp_path / "out", gate=second, model="m")
    assert second.calls == 2
    assert again.rows == audit_contrast([scans], tmp_path / "whole", gate=MeanGate(), model="m").rows
    with pytest.raises(DataError, match="another model"):
        audit_contrast([scans], tmp_path / "out", gate=second, model="other")


def test_check_11_labels_are_joined_by_id(scans: Path, tmp_path: Path) -> None:
    """Acceptance check 11: a missing, repeated or unknown id is an error that names it; order means nothing."""
    series = ["a/x.nii.gz", "b", "c"]
    table = tmp_path / "labels.csv"

    def truth(*rows: str) -> dict[str, int]:
        table.write_text("series,contrast\n" + "\n".join(rows) + "\n")
        return read_truth(table, series)

    assert truth("c,1", "x.nii.gz,0", "b/,1") == {"a/x.nii.gz": 0, "b": 1, "c": 1}
    assert truth("c,1", "a/x.nii.gz,", "b,0") == {"c": 1, "b": 0}
    for rows, text in (
        (("c,1", "b,0"), "are missing: a/x.nii.gz"),
        (("c,1", "b,0", "a/x.nii.gz,0", "b,1"), "stand there twice: b"),
        (("c,1", "b,0", "a/x.nii.gz,0", "zz,1"), "no series of the sources: zz"),
        (("c,maybe", "b,0", "a/x.nii.gz,0"), "not for c"),
    ):
        with pytest.raises(DataError, match=text):
            truth(*rows)


def test_report_counts_missing_and_wrong(scans: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("series,contrast\nbright-no,1\ndark-yes,0\nbright-silent,1\ndark.nii.gz,0\n")
    audit = audit_contrast([scans], tmp_path / "out", gate=MeanGate(), model="m", labels=labels)
    content = summarise(audit.rows)
    assert content["truth"] == "label"
    assert content["missing"]["estimate"] == 0.5
    assert content["wrong"]["estimate"] == 1.0
    assert content["missing_or_wrong"]["estimate"] == 1.0
    assert content["missing_or_wrong"]["method"] == "clopper-pearson"
    assert sum(cell["series"] for cell in content["confusion"]) == 4
    page = write_audit_report(audit)
    assert "1496 of 1979 (75.6%)" in page.read_text()
    assert json.loads((audit.folder / "report.json").read_text())["missing"]["n"] == 4


def test_published_rule_takes_every_other_text_for_contrast() -> None:
    agents = {"N": "no", "n": "no", "NO": "no", "none": "yes", "No": "yes", "0": "yes", "ORAL": "yes", "": "absent"}
    assert {text: published_rule([{"ContrastBolusAgent": (text,)}]) for text in agents} == agents
    assert published_rule([{}]) == "absent"


def test_a_store_is_audited_split_and_filtered(scans: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    take_in(scans, path)
    rows = audit_contrast([path], tmp_path / "out", gate=MeanGate(), model="m").rows
    assert sorted((row["header"], row["decision"]) for row in rows) == [
        ("absent", "no"), ("absent", "yes"), ("no", "yes"), ("yes", "no"),
    ]  # fmt: skip
    table = str(tmp_path / "out" / "table.csv")
    with Store.open(path) as store:
        chosen = select(store, StoreConfig(str(path), filter=["table.decision=yes"], table=table))
        assert {e.id for e in chosen} == {row["series"] for row in rows if row["decision"] == "yes"}
        assert len(select(store, StoreConfig(str(path), filter=["table.probability<0.5"], table=table))) == 2
        shares = {"train": 0.5, "test": 0.5}
        places = split(store, fractions=shares, method="stratified", by=f"{table}:decision")
        of = {entry.patient: row["decision"] for entry, row in zip(store.entries, rows, strict=True)}
        assert sorted((of[p], place) for p, place in places.items()) == sorted(
            (decision, place) for decision in ("yes", "no") for place in shares
        )
        short = tmp_path / "short.csv"
        short.write_text(f"series,decision\n{rows[0]['series']},yes\n")
        with pytest.raises(DataError, match=rows[1]["series"]):
            select(store, StoreConfig(str(path), filter=["table.decision=yes"], table=str(short)))
        with pytest.raises(ConfigError, match="no column"):
            select(store, StoreConfig(str(path), filter=["table.colour=red"], table=table))
    with pytest.raises(ConfigError, match="no table is named"):
        meets(object(), ["table.decision=yes"])


def test_known_scans_are_counted_exactly(scans: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("series,contrast\nbright-no,1\ndark-yes,1\nbright-silent,1\ndark.nii.gz,0\n")
    rows = judge_known_scans(MeanGate(), scans, labels)
    shares = summarise_known(rows)
    assert (shares["gate"].estimate, shares["HU baseline"].estimate) == (0.75, 0.75)
    assert shares["gate"].low is not None
    assert shares["gate"].high is not None
    assert np.allclose([shares["gate"].low, shares["gate"].high], [0.194, 0.994], atol=1e-3)  # Clopper-Pearson 3/4
    text = report(rows, "m")
    assert "gate: 3/4" in text
    assert text.count("\n| ") == 5
    unread = {**rows[0], "probability": None, "right": False, "baseline": None, "baseline_right": None}
    assert summarise_known([unread, *rows[1:]])["HU baseline"].n == 4  # what was not read is not right
    assert "HU baseline" not in summarise_known([unread])


def test_command_says_what_it_found(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", "contrast", str(scans), str(tmp_path / "out")]) == 0
    assert "4 series of 4 patients: headers missing 50.0%" in capsys.readouterr().out
    assert main(["curate", "contrast", str(scans)]) == 2
    assert main(["curate", "contrast", str(scans), str(tmp_path / "b"), "colour=red"]) == 2
    assert main(["curate", "rsna-ich", "a", "b"]) == 2

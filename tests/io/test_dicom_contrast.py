"""Contrast attributes of DICOM files: all of them, of every slice, without pixels, whatever the bytes are."""

from pathlib import Path

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from fmct.contrast.header import judge_series
from fmct.io.dicom_contrast import ATTRIBUTES, UNREADABLE, read_contrast_headers


def write(path: Path, **values: object) -> str:
    """Write a file of header elements alone."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Modality = "CT"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return str(path)


def item(**values: object) -> Dataset:
    """Return an item of a sequence."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def test_every_attribute_of_the_reference_is_known_to_the_dictionary() -> None:
    tags = {
        (0x0018, n)
        for n in (0x10, 0x12, 0x14, *range(0x1040, 0x104A), 0x11B7, 0x9340, 0x9341, 0x9342, 0x9343, 0x9344)
        if n != 0x1045
    }
    known = {(tag >> 16, tag & 0xFFFF) for tag in map(tag_for_keyword, ATTRIBUTES) if tag is not None}
    assert tags <= known
    assert len(known) == len(ATTRIBUTES)
    assert {"SeriesDescription", "ProtocolName", "StudyDescription"} <= set(ATTRIBUTES)


def test_values_of_a_classic_slice(tmp_path: Path) -> None:
    agent = item(CodeMeaning="Iohexol", CodeValue="C-B0322", CodingSchemeDesignator="SRT")
    path = write(
        tmp_path / "a.dcm",
        ContrastBolusAgent="Omnipaque 350 ",
        ContrastBolusRoute="",
        ContrastBolusVolume="90",
        ContrastFlowRate=["3", "2"],
        ContrastBolusAgentSequence=Sequence([agent]),
        SeriesDescription="Thorax",
    )
    found = dict(read_contrast_headers([path])[0])
    assert found["ContrastBolusAgent"] == ("Omnipaque 350",)
    assert found["ContrastBolusRoute"] == ("",)
    assert [float(v) for v in found["ContrastFlowRate"]] == [3, 2]
    assert found["ContrastBolusAgentSequence"] == ("Iohexol",)
    assert "ContrastBolusStartTime" not in found


def test_agent_administered_in_functional_groups_wins(tmp_path: Path) -> None:
    usage = item(ContrastBolusAgentAdministered="NO", ContrastBolusAgentDetected="NO", ContrastBolusAgentNumber=1)
    groups = Sequence([item(ContrastBolusUsageSequence=Sequence([usage]))])
    path = write(tmp_path / "a.dcm", ContrastBolusAgent="ISOVUE", SharedFunctionalGroupsSequence=groups)
    verdict = judge_series(read_contrast_headers([path]))
    assert (verdict.state, verdict.tags) == ("no", ("ContrastBolusAgentAdministered",))


def test_every_slice_is_read_and_disagreement_is_ambiguous(tmp_path: Path) -> None:
    """Acceptance check 10: not the first slice alone."""
    paths = [write(tmp_path / f"{n}.dcm", ContrastBolusAgent="ISOVUE" if n < 4 else "NO") for n in range(5)]
    assert judge_series(read_contrast_headers(paths[:4])).state == "yes"
    assert judge_series(read_contrast_headers(paths)).state == "ambiguous"


def test_unreadable_bytes_do_not_crash(tmp_path: Path) -> None:
    """Acceptance check 10: bytes that are no text, an element cut short, a file that is no DICOM."""
    path = Path(write(tmp_path / "a.dcm", ContrastBolusAgent="QQQQQQQQ", SeriesDescription="XXXXXXXX"))
    content = path.read_bytes()
    (tmp_path / "b.dcm").write_bytes(content.replace(b"QQQQQQQQ", b"\xff\xfe\x81\x00\x9d\xf0\x28\x8c"))
    (tmp_path / "c.dcm").write_bytes(content[: content.index(b"XXXXXXXX") + 3])
    (tmp_path / "d.dcm").write_bytes(b"no DICOM at all")
    for name in "bcd":
        headers = read_contrast_headers([str(tmp_path / f"{name}.dcm")])
        assert judge_series(headers).state in ("ambiguous", "absent")
    assert read_contrast_headers([str(tmp_path / "missing.dcm")]) == [{"": (UNREADABLE,)}]


def test_pixels_are_not_read(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.dcm", ContrastBolusAgent="YES"))
    dataset = pydicom.dcmread(path)
    dataset.add_new((0x7FE0, 0x0010), "OW", b"\0\0" * 8)
    dataset.save_as(path)
    path.write_bytes(path.read_bytes()[:-9])  # a pixel element cut short would fail a reader that looks at it
    assert judge_series(read_contrast_headers([str(path)])).state == "yes"

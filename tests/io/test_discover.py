"""Discovery: any nesting and names, a fixed order, stable keys, and a code for everything that is no scan."""

import os
import pickle
import tarfile
import zipfile
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from fmct.errors import DataError, Refusal
from fmct.io import REFUSAL_CODES, Candidate, ReadPolicy, Rejected, discover, read_candidate, read_volume
from fmct.io.dicom_header import read_headers
from fmct.io.refusals import refusal
from tests.io.dicom_writer import save, slice_dataset, write_series
from tests.io.phantoms import body

BODY = body()


def outcome(candidate: Candidate, policy: ReadPolicy) -> str:
    """Return the code with which a candidate is refused, or `taken`; any other error is the test's failure."""
    try:
        read_candidate(candidate, policy)
    except Refusal as refused:
        return refused.code
    return "taken"


def nifti(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(BODY.T, np.diag([-1.0, -1.0, 2.0, 1.0])), path)


def test_what_is_no_scan_is_named_by_reason(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "garbage.nii").write_bytes(os.urandom(400))
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(40))
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as file:
        file.writestr("../escape.nii", b"x")
    with tarfile.open(tmp_path / "scans.tar", "w") as file:
        file.add(tmp_path / "notes.txt")
    found = list(discover([tmp_path]))
    codes = Counter(item.code for item in found if isinstance(item, Rejected))
    assert codes == {"not-an-image": 3, "archive": 2}
    candidates = [item for item in found if isinstance(item, Candidate)]
    assert [c.name for c in candidates] == ["garbage.nii"]
    with pytest.raises(Refusal):
        read_candidate(candidates[0])
    assert not (tmp_path.parent / "escape.nii").exists()


def test_an_empty_folder_gives_nothing_and_a_missing_one_is_an_error(tmp_path):
    assert list(discover([tmp_path])) == []
    with pytest.raises(DataError, match="no such file"):
        list(discover([tmp_path / "gone"]))
    with pytest.raises(DataError, match="no files"):
        read_volume(tmp_path)


def test_links_are_followed_and_loops_are_not(tmp_path):
    write_series(tmp_path / "elsewhere", BODY)
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "sub" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "broken").symlink_to(tmp_path / "gone")
    assert np.array_equal(read_volume(tmp_path / "root").voxels, BODY)


def test_order_and_keys_do_not_depend_on_the_rest(tmp_path):
    for name in "cab":
        write_series(tmp_path / name, BODY, series_uid=f"1.2.{ord(name)}")
        nifti(tmp_path / name / "scan.nii.gz")
    first, again = list(discover([tmp_path])), list(discover([tmp_path]))
    assert first == again
    assert [c.name for c in first[:3]] == ["a/scan.nii.gz", "b/scan.nii.gz", "c/scan.nii.gz"]
    (alone,) = [c for c in discover([tmp_path / "b"]) if c.format == "dicom"]
    assert alone.key in {c.key for c in first}
    assert len({c.key for c in first}) == 6
    assert not any("scan" in c.key or str(tmp_path) in c.key for c in first)
    assert pickle.loads(pickle.dumps(first)) == first


def test_equal_names_in_two_sources_get_two_keys(tmp_path):
    nifti(tmp_path / "x" / "data" / "ct.nii")
    nifti(tmp_path / "y" / "data" / "ct.nii")
    a, b = discover([tmp_path / "x" / "data", tmp_path / "y" / "data"])
    assert a.key != b.key
    assert [a, b] == list(discover([tmp_path / "x" / "data", tmp_path / "y" / "data"]))


def test_several_series_mixed_in_one_folder(tmp_path):
    for number in range(3):
        write_series(tmp_path, BODY + number, name=f"{{:03d}}_{number}", series_uid=f"1.2.3.{number}")
    found = list(discover([tmp_path]))
    assert sorted(int(read_candidate(c).voxels[0, 0, 0]) - int(BODY[0, 0, 0]) for c in found) == [0, 1, 2]
    with pytest.raises(DataError, match="found 3"):
        read_volume(tmp_path)
    assert np.array_equal(read_volume(tmp_path, series=found[1].key).voxels, read_candidate(found[1]).voxels)


def test_a_series_may_span_folders_unless_the_policy_says_not(tmp_path):
    paths = write_series(tmp_path, BODY)
    for number, path in enumerate(paths):
        target = tmp_path / f"part{number % 2}" / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert np.array_equal(read_volume(tmp_path).voxels, BODY)
    folders = list(discover([tmp_path], policy=ReadPolicy(series_scope="folder")))
    assert [len(c.paths) for c in folders] == [6, 6]


def test_dicom_without_preamble_is_found(tmp_path):
    for number, path in enumerate(write_series(tmp_path / "a", BODY, syntax="implicit")):
        content = path.read_bytes()
        meta_length = int.from_bytes(content[140:144], "little")
        start = 0 if number % 2 else 144 + meta_length
        (tmp_path / f"{number}").write_bytes(content[132:] if number % 2 else content[start:])
        path.unlink()
    assert np.array_equal(read_volume(tmp_path).voxels, BODY)


def test_deep_sequences_and_preambles_with_programs_do_no_harm(tmp_path):
    nested = Dataset()
    for _ in range(300):
        outer = Dataset()
        outer.ReferencedStudySequence = Sequence([nested])
        nested = outer
    dataset = slice_dataset(BODY[0], (0, 0, 0), series_uid="1.2.3")
    depth_bomb = b""
    for _ in range(3000):
        depth_bomb += b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path = save(dataset, tmp_path / "bomb")
    content = path.read_bytes()
    at = content.index(b"\x10\x00\x10\x00")
    path.write_bytes(b"MZ" + content[2:at] + depth_bomb + content[at:])
    (found,) = discover([tmp_path])
    code = found.code if isinstance(found, Rejected) else outcome(found, ReadPolicy())
    assert code in ("unreadable", "too-few-slices")


def test_random_damage_never_escapes_as_another_error(tmp_path):
    path = write_series(tmp_path / "a", BODY[:1])[0]
    nifti(tmp_path / "scan.nii")
    whole = {"dicom": path.read_bytes(), "scan.nii": (tmp_path / "scan.nii").read_bytes()}
    rng = np.random.default_rng(0)
    policy = ReadPolicy(min_slices=2)
    for trial in range(150):
        name = ("dicom", "scan.nii")[trial % 2]
        content = bytearray(whole[name])
        for _ in range(8):
            content[int(rng.integers(0, 700 if name == "dicom" else 352))] = int(rng.integers(0, 256))
        target = tmp_path / "damaged" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(bytes(content))
        for found in discover([target], policy=policy):
            if isinstance(found, Candidate):
                assert outcome(found, policy) in {"taken", *REFUSAL_CODES}


def test_many_files_stay_in_bounded_memory(tmp_path):
    import tracemalloc

    from fmct.io.dicom_series import SeriesIndex

    path = write_series(tmp_path, BODY[:1])[0]
    header = read_headers(str(path))[0]
    index = SeriesIndex(ReadPolicy())
    tracemalloc.start()
    for number in range(20_000):
        index.add(f"/data/patient/study/series/IM{number:08d}", f"IM{number:08d}", [header])
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / 20_000 < 400  # bytes a slice: 10⁵ files hold under 40 MB


def test_candidates_hide_what_identifies(tmp_path):
    write_series(tmp_path / "ZZPHI_CANARY", BODY, change=lambda d, _: setattr(d, "PatientID", "CANARY-7"))
    (candidate,) = discover([tmp_path])
    assert candidate.patient == "CANARY-7"
    assert "CANARY" not in repr(candidate)
    assert candidate.bytes == sum(os.path.getsize(p) for p in candidate.paths)


def test_codes_are_documented_kebab_case_and_checked():
    for code, meaning in REFUSAL_CODES.items():
        assert code == code.lower().replace("_", "-")
        assert len(meaning) > 10
    with pytest.raises(AssertionError):
        refusal("no-such-code", "text")


def test_a_file_that_vanishes_is_refused(tmp_path):
    nifti(tmp_path / "scan.nii")
    (candidate,) = discover([tmp_path])
    (tmp_path / "scan.nii").unlink()
    with pytest.raises(Refusal, match="unreadable"):
        read_candidate(candidate)

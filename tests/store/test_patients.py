"""Who a scan belongs to."""

import pytest

from fmct.errors import ConfigError
from fmct.store.patients import PatientNames


def table(tmp_path, text):
    path = tmp_path / "patients.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "text", ["file,patient\nb/x.nii,P 1\nfolder,Pé\n", "\ufefffile;patient\nb/x.nii;P 1\nfolder;Pé\n"]
)
def test_a_table_knows_files_and_folders(tmp_path, text):
    names = PatientNames(table(tmp_path, text))
    assert names.of("a/b/x.nii", None) == "P 1"
    assert names.of("a/c/x.nii", None) is None
    assert names.of("folder/1.dcm", "HEADER") == "Pé"
    assert names.of("top/folder/deep/1.dcm", None) == "Pé"
    assert names.of("elsewhere/1.dcm", " HEADER ") == "HEADER"
    assert names.unused(["a/b/x.nii"]) == 1


def test_a_pattern_names_patients_of_formats_without_them():
    names = PatientNames(regex=r"(STS_\d+)/")
    assert names.of("sts/STS_003/ct.nii.gz", None) == "STS_003"
    assert names.of("sts/other.nii.gz", None) is None
    assert names.of("sts/STS_003/ct.dcm", "HEADER") == "HEADER"
    assert PatientNames(regex=r"STS_\d+").of("STS_007_ct.nii", None) == "STS_007"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,who\nx,y\n", "columns file and patient"),
        ("", "no rows"),
        ("file,patient\nx,\n", "line 2"),
        ("file,patient\nx,a\nx,b\n", "line 3"),
    ],
)
def test_a_table_that_is_none_is_told(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        PatientNames(table(tmp_path, text))


def test_a_bad_pattern_and_a_missing_table_are_told(tmp_path):
    with pytest.raises(ConfigError, match="regular expression"):
        PatientNames(regex="(")
    with pytest.raises(ConfigError, match="not readable"):
        PatientNames(str(tmp_path / "none.csv"))

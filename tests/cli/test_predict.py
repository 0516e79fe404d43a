from collections.abc import Iterator
from pathlib import Path

import pytest

from fmct.cli import main
from fmct.publish.decision import Decision
from fmct.table_files import read_rows
from tests.publish.tiny import body, tiny_encoder, write_nifti
from tests.publish.tiny_models import register, tiny_model


@pytest.fixture(autouse=True)
def kind() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


def test_predict_says_what_came_and_its_exit_code_says_whether_a_scan_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tmp_path / "model", "phase", decision=Decision(thresholds={"lesion": 0.5}))
    write_nifti(tmp_path / "scans" / "P01.nii.gz", body(0))
    words = ["predict", str(model), str(tmp_path / "scans")]
    assert main([*words, str(tmp_path / "out"), "--device", "cpu", "--format", "json", "--read", "min_slices=20"]) == 0
    assert "1 of 1 series predicted" in capsys.readouterr().out
    assert read_rows(tmp_path / "out" / "predictions.jsonl")[0]["patient"] == "P01"
    (tmp_path / "scans" / "P02.nii.gz").write_bytes(b"")
    assert main([*words, str(tmp_path / "out"), "--device", "cpu", "--format", "json", "--read", "min_slices=20"]) == 1
    told = capsys.readouterr()
    assert "failed: patient P02, series file-" in told.err
    assert "1 of 2 series predicted; 1 of them by an earlier run" in told.out


def test_mistakes_are_explained_before_anything_is_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nifti(tmp_path / "scans" / "P01.nii.gz", body(0))
    encoder, scans, out = tiny_encoder(tmp_path / "encoder"), str(tmp_path / "scans"), str(tmp_path / "out")
    for words, said in (
        ([str(encoder), scans, out], "holds an encoder"),
        ([str(encoder), str(tmp_path / "nowhere"), out], "no such file or folder"),
        ([str(encoder), scans, out, "--overlap", "1"], "a share of a window's side"),
        ([str(encoder), scans, out, "--key", str(tmp_path / "key")], "no such key file"),
    ):
        assert main(["predict", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

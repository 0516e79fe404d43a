from pathlib import Path

import pytest

from fmct.cli import main
from tests.publish.test_export import RunConfig, make_run
from tests.publish.tiny import body, write_nifti


def test_a_run_becomes_a_folder_that_could_be_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nifti(tmp_path / "scans" / "a.nii.gz", body())
    assert main(["ingest", str(tmp_path / "scans"), str(tmp_path / "store"), "workers=1"]) == 0
    run = make_run(tmp_path / "run", RunConfig(store=str(tmp_path / "store")))
    encoder = tmp_path / "encoder"
    assert main(["export", str(run), str(encoder), "--with-heads", "--license", "cc-by-4.0"]) == 0
    assert "the teacher of step 20, 64 features" in capsys.readouterr().out
    assert main(["export", str(run), str(encoder), "--step", "10"]) == 0
    assert main(["export", str(run), str(encoder), "--student"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", str(run), str(encoder), "--student", "--overwrite"]) == 0
    assert main(["export", str(tmp_path / "scans"), str(encoder)]) == 2
    capsys.readouterr()
    assert main(["publish", str(encoder), "lab/name", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said
    assert "nothing was sent" in said
    (encoder / "README.md").write_text("changed")
    assert main(["publish", str(encoder), "lab/name", "--dry-run"]) == 2
    assert "altered or cut short" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["export", "publish", "embed", "inspect"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"fmct {verb} " in capsys.readouterr().out.partition("example:")[2]

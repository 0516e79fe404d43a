import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmct.cli import main
from fmct.errors import DataError
from fmct.inspection.findings import Findings
from fmct.inspection.inspect import inspect_path
from fmct.store.ingest import ingest
from tests.publish.test_export import RunConfig, make_run
from tests.publish.tiny import body, tiny_encoder, write_nifti


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect") / "ZZPHI^CANARY"
    write_nifti(root / "a.nii.gz", body(0))
    write_nifti(root / "b.nii.gz", body(1))
    return root


@pytest.fixture
def store(scans: Path, tmp_path: Path) -> Path:
    mask = replace(body(), voxels=(body().voxels > 0).astype(np.int16))
    path = write_nifti(tmp_path / "mask.nii.gz", mask)
    with ThreadPoolExecutor(1) as executor:
        ingest([scans, path], tmp_path / "store", executor=executor)
    return tmp_path / "store"


def test_a_scan_is_told_by_its_grid_and_values(scans: Path) -> None:
    volume = body(0)
    findings = inspect_path(scans / "a.nii.gz")
    facts = findings.facts
    assert findings.sane
    assert findings.kind == "scan"
    assert (facts["modality"], facts["orientation"], facts["voxels_zyx"]) == ("CT", "SPL", [30, 36, 40])
    assert facts["spacing_mm"] == pytest.approx([10.0, 9.0, 9.5])
    assert facts["extent_mm"] == pytest.approx([300.0, 324.0, 380.0])
    assert facts["value_range"] == [volume.voxels.min(), volume.voxels.max()]
    assert facts["quantiles"]["0.5"] == np.median(volume.voxels)
    assert facts["shares"]["air"] == pytest.approx((volume.voxels < -500).mean(), abs=1e-4)
    assert sum(facts["shares"].values()) == pytest.approx(1, abs=1e-3)


def test_a_refused_scan_is_not_sane_and_says_why(scans: Path, tmp_path: Path) -> None:
    mask = write_nifti(tmp_path / "mask.nii.gz", replace(body(), voxels=(body().voxels > 0).astype(np.int16)))
    findings = inspect_path(mask)
    assert not findings.sane
    assert findings.facts["refused"] == "implausible-hu"
    assert findings.facts["numbers"]["distinct_values"] == 2
    write_nifti(tmp_path / "good.nii.gz", body())
    (tmp_path / "notes.txt").write_text("x")
    folder = inspect_path(tmp_path)
    assert folder.kind == "folder of 2 scans"
    assert len(folder.faults) == 1
    assert folder.notes == ["1 files are no scans"]


def test_a_store_is_counted_and_a_sample_read(store: Path) -> None:
    findings = inspect_path(store)
    facts = findings.facts
    assert findings.sane, findings.faults
    assert (facts["series"], facts["patients"], facts["modality"]) == (2, 2, {"CT": 2})
    assert facts["refused"] == {"implausible-hu": 1}
    assert facts["slice_distance_mm"]["median"] == pytest.approx(10.0)
    assert facts["checked"] == "2 of 2 series read whole are what was ingested"
    assert main(["split", str(store)]) == 0
    assert sum(inspect_path(store).facts["splits"].values()) == 2


def test_damage_in_a_store_is_found(store: Path) -> None:
    (store / "splits.csv").write_text("patient,split\nx,train\nx,test\n")
    assert any("two splits" in fault for fault in inspect_path(store).faults)
    (store / "splits.csv").unlink()
    for shard in store.rglob("*.h5"):
        shard.chmod(0o644)
        content = bytearray(shard.read_bytes())
        content[len(content) // 3 : 2 * len(content) // 3] = bytes(len(content) // 3 + 1)[: len(content) // 3]
        shard.write_bytes(bytes(content[: len(content)]))
    findings = inspect_path(store)
    assert not findings.sane
    assert findings.facts["checked"].startswith("0 of 2")


def test_a_run_is_told_by_step_loss_health_and_checkpoint(store: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", RunConfig(store=str(store)))
    findings = inspect_path(run)
    facts = findings.facts
    assert findings.sane, findings.faults
    assert (findings.kind, facts["step"], facts["steps_planned"]) == ("run", 20, 40)
    assert facts["loss"] == {"first": 2.9, "last": 1.0}
    assert facts["health"] == {"teacher_entropy": 0.6}
    assert (facts["last_checkpoint_verified"], facts["resumable"]) == (20, True)

    (run / "events.jsonl").write_text('{"event": "alarm", "step": 12, "alarm": "entropy fell"}\n')
    broken = run / "checkpoints" / "step-000020" / "task.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 22, "loss": null}\n{"step"')
    findings = inspect_path(run)
    text = findings.to_text()
    for part in ("alarm: entropy fell", "cut short", "does not hold each step once", "last loss is not finite"):
        assert part in text, part
    assert findings.facts["last_checkpoint_verified"] == 10
    assert "NOT SANE: 4 faults" in text


def test_an_encoder_is_told_by_its_card_and_selftest(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    findings = inspect_path(folder)
    assert findings.sane
    assert findings.facts["selftest"] == {"largest_relative_difference": 0.0, "bit_equal": True}
    assert findings.facts["corpus"]["series"] == 2
    (folder / "golden.json").unlink()
    assert "golden.json is missing" in inspect_path(folder).faults[0]


def test_exit_codes_and_json(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(scans / "a.nii.gz"), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert next(iter(tree)) == "format"
    assert tree["format"] == {"name": "fmct-inspection", "version": "1.0"}
    assert tree["sane"] is True
    empty = tmp_path / "notes.txt"
    empty.write_text("x")
    assert main(["inspect", str(empty)]) == 2
    assert "no scan, store, run or encoder" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "absent")]) == 2
    (tmp_path / "cut.nii").write_bytes(b"\x5c\x01" + bytes(100))
    assert main(["inspect", str(tmp_path / "cut.nii")]) == 1
    assert "NOT SANE: 1 fault\n" in capsys.readouterr().out


def test_findings_name_nobody(scans: Path, store: Path) -> None:
    for path in (scans, scans / "a.nii.gz", store):
        findings = inspect_path(path)
        for text in (findings.to_text(), json.dumps(findings.to_dict())):
            assert "ZZPHI" not in text
            assert "CANARY" not in text


def test_nothing_to_inspect(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scan, store, run or encoder"):
        inspect_path(tmp_path)


def test_text_reads_plainly() -> None:
    findings = Findings("thing", {"voxels": [3, 4, 5], "share": 0.123456789, "none": None, "parts": [{"a": True}]})
    findings.notes.append("small")
    expected = [
        "thing",
        "  voxels: 3 × 4 × 5",
        "  share: 0.12346",
        "  none: –",
        "  parts 0:",
        "    a: yes",
        "  note: small",
    ]
    assert findings.to_text().splitlines() == [*expected, "sane"]

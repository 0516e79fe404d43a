"""Reference A.12 item 13 for what only DICOM can be wrong in, through `fmct predict` with the gate."""

import json
from pathlib import Path

from fmct import cli
from fmct.inference.predictions import read_predictions
from tests.contrast import bright_vessels
from tests.contrast.conftest import Trained
from tests.contrast.faulty_series import FAILED, LEFT_OUT, write_faulty


def test_a_series_with_a_fault_in_its_header_has_a_code_and_no_probability(trained: Trained, tmp_path: Path) -> None:
    """Missing slope, localiser, MR, RGB, secondary capture and gantry tilt: never a silent probability."""
    volume = bright_vessels.volume(960, "portal").oriented("SPL")
    z, _, x = (float(side) for side in volume.spacing)
    write_faulty(tmp_path / "scans", volume.voxels, pixel_mm=x, step_mm=z)
    out = tmp_path / "out"
    assert cli.main(["predict", str(trained.model), str(tmp_path / "scans"), str(out), "--device", "cpu"]) == 1
    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["code"] for line in ledger) == sorted({"", *FAILED})
    assert not LEFT_OUT & {line["patient"] for line in ledger}
    rows = [p for p in read_predictions(out / "predictions.csv") if p.target == "contrast"]
    assert len(rows) == len(ledger)
    assert [p.patient for p in rows if not p.failed] == ["sound"]
    assert all(p.decision is None and p.error for p in rows if p.failed)

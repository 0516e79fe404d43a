"""The way into a store beside MONAI's, and what is said when MONAI is not there."""

import importlib.util

import pytest

from fmct.bench import ingest
from fmct.bench.fresh import in_fresh_process
from fmct.bench.workbench import QUICK, Workbench, write_nifti
from fmct.phantoms import body as phantom


def test_without_monai_it_says_so(monkeypatch, tmp_path):
    ours = {
        "whole": {"cpu": 1.0, "wall": 2.0},
        "stages": {"read": 0.5, "hash": 0.1, "pyramid": 0.1, "write": 0.3},
        "floors": {"read": 0.25, "pyramid": 0.05, "write": 0.1},
        **{"shape": [1, 2, 3], "mb_int16": 1.0, "mb_file": 1.0, "mb_stored": 1.0},
    }
    bench = Workbench(tmp_path, QUICK, say=lambda text: None)
    bench.cache["chest"] = phantom.body(0, (8, 16, 16), (8.0, 8.0, 8.0))
    monkeypatch.setattr(ingest, "in_fresh_process", lambda function, **_: ours)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    figures = {figure.name: figure for figure in ingest.bench_ingest(bench)}
    assert "ingest/monai_ratio" not in figures
    assert "MONAI is not installed" in figures["ingest/whole"].note
    assert figures["ingest/whole"].to_dict()["of_floor"] == 2.5
    assert figures["ingest/read"].to_dict()["of_floor"] == 2.0


@pytest.mark.slow
def test_monai_goes_the_same_way(tmp_path):
    """MONAI alone takes five seconds to import."""
    write_nifti(tmp_path / "chest.nii.gz", phantom.body(0, (12, 40, 40), (4.0, 3.0, 3.0)))
    found = in_fresh_process(ingest.measure_monai, threads=1, file=str(tmp_path / "chest.nii.gz"), folder=str(tmp_path))
    assert found["cpu"] > 0
    assert found["wall"] > 0
    assert found["shape"] == [118, 118, 45], "resampled to 1 mm between the outer voxels' centres"

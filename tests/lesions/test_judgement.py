"""`fmct evaluate` of a lesion detector: whose lesions are known, regions to ignore, and grids that differ."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmct.artefacts import write_json
from fmct.cli import main
from fmct.config import plain
from fmct.errors import DataError
from fmct.lesions.candidates import find_candidates, write_candidates
from fmct.lesions.predict import FORMAT, RECORD
from fmct.lesions.references import mask_on_scan
from fmct.lesions.settings import EvaluateConfig
from fmct.table_files import write_rows
from tests.lesions.brains import ball

SHAPE, SPACING = (16, 24, 20), (2.0, 1.0, 1.0)  # z, y, x
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0]) + np.array([[0, 0, 0, 11.0], [0, 0, 0, 7], [0, 0, 0, -5], [0] * 4])  # xyz
PLACES = {"hit": (0, -6, -4), "doubtful": (0, 6, 4), "wrong": (8, 6, -4)}  # mm from the middle
COLUMNS = ("patient", "series", "target", "split", "probability", "decision", "threshold", "error")


def blobs(*names: str) -> np.ndarray:
    return sum((ball(SHAPE, SPACING, 2.2, PLACES[name]) for name in names), np.zeros(SHAPE, dtype=bool))


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values.astype(np.uint8).transpose(2, 1, 0), affine).to_filename(path)


def predicted(
    folder: Path, called: Mapping[str, tuple[str, ...]], failed: tuple[str, ...] = (), **rule: object
) -> Path:
    """Write what `fmct predict` would for series with candidates at these places, all of them kept."""
    rows, every = [], []
    for series, names in called.items():
        error = "non-finite-values: made for a test" if series == failed else ""
        rows.append(dict(zip(COLUMNS, (f"P-{series}", series, "nodule", "test", "0.9", "", "", error), strict=True)))
        if error:
            continue
        values = blobs(*names).astype(np.float32)
        labels, found = find_candidates(
            values, AFFINE[:, [2, 1, 0, 3]], threshold=0.5, patient=f"P-{series}", series=series, split="test"
        )
        every += [c.judged(0.9, threshold=0.5).decided(True, "") for c in found]
        write(folder / "labels" / f"{series}.nii.gz", labels)
    write_candidates(folder / "candidates.csv", every)
    write_rows(folder / "predictions.csv", COLUMNS, rows)
    match = {"match": plain(EvaluateConfig(split="", **rule))} if rule else {}  # type: ignore[arg-type]
    write_json(folder / RECORD, *FORMAT, {"model": "m", "target": "nodule", "lesion_sign": "bright", **match})
    return folder


def judged(out: Path, *words: object) -> list[dict[str, float]]:
    """Run `fmct evaluate` and return its three stages."""
    assert main(["evaluate", *map(str, words), "--resamples", "100"]) == 0
    return json.loads((out / "results.json").read_text())["stages"]


def test_regions_to_ignore_count_neither_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """B.13, 21 through the command: neither a hit nor a false positive, and an overlapped lesion stays a hit."""
    folder = predicted(tmp_path / "out", {"a": ("hit", "doubtful", "wrong")})
    write(tmp_path / "masks" / "a.nii.gz", blobs("hit"))
    write(tmp_path / "ignore" / "a.nii.gz", blobs("doubtful", "hit"))
    report = tmp_path / "report"
    plainly = judged(report, folder, tmp_path / "masks", report)
    assert [(s["found"], s["false"]) for s in plainly] == [(1, 2)] * 3
    told = judged(report, folder, tmp_path / "masks", report, "--ignore", tmp_path / "ignore")
    assert [(s["found"], s["false"]) for s in told] == [(1, 1)] * 3
    page = re.sub(r"<[^>]+>", " ", (report / "report.html").read_text()).split()
    assert "26-connected component of what the detector proposed; its score" in " ".join(page)
    assert " ".join(("P-a", "3", "3", "1", "yes")) in " ".join(page)  # kept without lesion: not the doubtful one
    assert main(["evaluate", *map(str, (folder, tmp_path / "masks", report, "--ignore", tmp_path / "absent"))]) == 2
    assert "expected a folder" in capsys.readouterr().err


def test_series_without_lesions_count_where_a_table_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """False positives are of all subjects, those without a lesion too; without the table they are named as left out."""
    folder = predicted(tmp_path / "out", {"a": ("hit",), "b": ("wrong", "doubtful"), "c": ("wrong",)})
    write(tmp_path / "masks" / "a.nii.gz", blobs("hit"))
    labels = tmp_path / "labels.csv"
    labels.write_text("patient,series,nodule\nP-a,a,1\nP-b,b,0\nP-c,c,\n")
    report = tmp_path / "report"
    words = [folder, labels, report, "--masks", tmp_path / "masks"]
    stages = judged(report, *words)
    assert [(s["subjects"], s["lesions"], s["false"]) for s in stages] == [(2, 1, 2)] * 3
    assert "1 predicted series have no reference mask" in capsys.readouterr().out
    assert judged(report, folder, tmp_path / "masks", report)[0]["subjects"] == 1
    assert "2 predicted series have no reference mask" in capsys.readouterr().out
    for text, says in (
        ("patient,series,tumour\nP-a,a,1\n", "no column nodule"),
        ("patient,series,nodule\nP-a,a,0\n", "nodule of a is 0, and"),
        ("patient,series,nodule\nP-a,a,yes\n", "line 2 says 'yes'"),
    ):
        labels.write_text(text)
        assert main(["evaluate", *map(str, words)]) == 2
        assert says in capsys.readouterr().err
    assert main(["evaluate", str(folder), str(labels), str(report)]) == 2
    assert "--masks DIR" in capsys.readouterr().err


def test_a_cohort_without_any_lesion_has_no_sensitivity(tmp_path: Path) -> None:
    folder = predicted(tmp_path / "out", {"a": ("wrong", "hit"), "b": ()})
    for name in "ab":
        write(tmp_path / "masks" / f"{name}.nii.gz", blobs())
    (first, *_) = judged(tmp_path / "report", folder, tmp_path / "masks", tmp_path / "report")
    assert (first["lesions"], first["false"]) == (0, 2)
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["froc"]["curve"][0]["sensitivity"] is None
    assert "there is no sensitivity" in (tmp_path / "report" / "report.html").read_text()


def test_the_rule_is_the_models_own_and_may_be_said_anew(tmp_path: Path) -> None:
    """What counts as found is fixed before testing and travels with the predictions."""
    folder = predicted(tmp_path / "out", {"a": ("hit",)}, hit="centre", tolerance_mm=3.0, connectivity=18)
    near = ball(SHAPE, SPACING, 1.3, (0, -2, -4))  # 4 mm beside the candidate, which it does not touch
    write(tmp_path / "masks" / "a.nii.gz", near)
    report = tmp_path / "report"
    assert judged(report, folder, tmp_path / "masks", report)[0]["found"] == 0
    rule = json.loads((report / "results.json").read_text())["rule"]
    assert (rule["hit"], rule["tolerance_mm"], rule["connectivity"]) == ("centre", 3.0, 18)
    assert judged(report, folder, tmp_path / "masks", report, "--tolerance", "4.5")[0]["found"] == 1
    plainly = predicted(tmp_path / "older", {"a": ("hit",)})  # predictions that bring no rule: overlap
    assert judged(report, plainly, tmp_path / "masks", report)[0]["found"] == 0
    assert json.loads((report / "results.json").read_text())["rule"]["hit"] == "near"


def test_lesions_of_a_series_that_failed_are_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = predicted(tmp_path / "out", {"a": ("hit",), "b": ("hit",)}, failed="b")
    for name in "ab":
        write(tmp_path / "masks" / f"{name}.nii.gz", blobs("hit"))
    (first, *_) = judged(tmp_path / "report", folder, tmp_path / "masks", tmp_path / "report")
    assert (first["lesions"], first["found"]) == (2, 1)
    assert "1 series could not be predicted; their lesions count as missed" in capsys.readouterr().out


def turned(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same mask with its axes in another order and one of them the other way round (z, y, x of the file)."""
    xyz = np.flip(values.transpose(2, 1, 0), axis=0).transpose(1, 2, 0)
    flip = affine @ np.array([[-1.0, 0, 0, values.shape[2] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return xyz.transpose(2, 1, 0), flip[:, [1, 2, 0, 3]]


def test_a_mask_may_be_turned_or_cut_out_and_must_lie_on_the_scans_voxels(tmp_path: Path) -> None:
    """B.13, 24 and 26: axis order and direction change nothing; a mask on another grid is an error that names it."""
    grid, truth = AFFINE[:, [2, 1, 0, 3]], blobs("hit", "wrong")
    shapes = {"turned": turned(truth, AFFINE)}
    cut, moved = truth[2:, 3:20, 1:18], AFFINE.copy()
    moved[:3, 3] += AFFINE[:3, :3] @ [1, 3, 2]
    shapes["cut"] = (cut, moved)
    for name, (values, affine) in shapes.items():
        write(tmp_path / f"{name}.nii.gz", values, affine)
        found = mask_on_scan(tmp_path / f"{name}.nii.gz", SHAPE, grid)
        np.testing.assert_array_equal(found, truth if name == "turned" else truth & blobs_inside())
    shifted, coarse, away = AFFINE.copy(), AFFINE @ np.diag([2.0, 2, 1, 1]), AFFINE.copy()
    shifted[0, 3] += 0.4
    away[0, 3] += 14
    for affine, says in ((shifted, "another grid"), (coarse, "another grid"), (away, "outside its scan")):
        write(tmp_path / "off.nii.gz", truth, affine)
        with pytest.raises(DataError, match=rf"off\.nii\.gz: .*{says}"):
            mask_on_scan(tmp_path / "off.nii.gz", SHAPE, grid)


def blobs_inside() -> np.ndarray:
    inside = np.zeros(SHAPE, dtype=bool)
    inside[2:, 3:20, 1:18] = True
    return inside

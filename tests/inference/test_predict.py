"""Batches of predictions: tables, masks on the scans' own grids, N1, G6, and going on after a stop."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from fmct.errors import ArtefactError, DataError
from fmct.inference import predict_series as one
from fmct.inference.predict import predict
from fmct.inference.predict_series import Wanted
from fmct.inference.predictions import read_predictions
from fmct.inference.series_source import Naming, read_policy
from fmct.publish.decision import Decision
from fmct.publish.load_model import PublishedModel
from fmct.store import Store
from fmct.store.fingerprint import load_key
from fmct.store.ingest import ingest
from fmct.store.patients import PatientNames
from fmct.table_files import read_rows
from tests.io.dicom_writer import AXIAL, stacked, write_series
from tests.io.test_dicom_seg import framed
from tests.publish.tiny import body, write_nifti
from tests.publish.tiny_models import in_memory, loaded, register

FP32 = Wanted(precision="fp32")


@pytest.fixture(autouse=True)
def kind() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of two CT, as files of other orientations."""
    write_nifti(tmp_path / "scans" / "P01" / "ct.nii.gz", body(0))
    write_nifti(tmp_path / "scans" / "P02" / "ct.nii.gz", body(1).oriented("LIA"))
    return tmp_path / "scans"


def patients() -> Naming:
    return Naming(PatientNames(regex="P[0-9]+"))


def test_tables_say_probability_threshold_and_decision_and_are_read_back(scans: Path, tmp_path: Path) -> None:
    model = in_memory("phase", decision=Decision(thresholds={"lesion": 0.3}))
    summary = predict(model, scans, tmp_path / "out", naming=patients(), wanted=FP32)
    rows = read_predictions(tmp_path / "out" / "predictions.csv")
    assert [row.patient for row in rows] == ["P01", "P02"]
    for row in rows:
        assert row.probability == pytest.approx(1 / (1 + np.exp(-row.logit)))
        assert row.threshold == 0.3
        assert row.decision == int(row.probability >= 0.3)
    assert (summary.series, summary.decided, summary.failed) == (2, 2, [])
    sources = read_rows(tmp_path / "out" / "sources.csv")
    assert [Path(row["file"]).parent.name for row in sources] == ["P01", "P02"]


def test_n7_a_model_without_a_threshold_gives_probabilities_only(scans: Path, tmp_path: Path) -> None:
    """N7: the threshold is read from the artefact; without one there is no decision."""
    for name, decision in (("without", None), ("with", Decision(thresholds={"lesion": 0.5}))):
        model = loaded(tmp_path / name, "phase", decision=decision)
        summary = predict(model, scans, tmp_path / f"out-{name}", wanted=FP32)
        rows = read_predictions(tmp_path / f"out-{name}" / "predictions.csv")
        assert [row.decision is None for row in rows] == [decision is None] * 2
        assert ("probabilities only" in str(summary)) == (decision is None)
        assert all(np.isfinite(row.probability) for row in rows)


@pytest.mark.parametrize("table_format", ["csv", "parquet", "json"])
def test_every_format_holds_the_same_rows(scans: Path, tmp_path: Path, table_format: str) -> None:
    model = in_memory("phase")
    summary = predict(model, scans, tmp_path / table_format, table_format=table_format, naming=patients(), wanted=FP32)
    rows = read_rows(summary.table)
    predict(model, scans, tmp_path / "again", naming=patients(), wanted=FP32)
    assert [dict(row) for row in rows] == [dict(row) for row in read_rows(tmp_path / "again" / "predictions.csv")]
    assert read_rows(tmp_path / table_format / f"components{summary.table.suffix}")


def test_masks_maps_and_components_lie_on_the_scans_own_grid(scans: Path, tmp_path: Path) -> None:
    """N5 end to end: affine, shape and header of the source; the table's voxels are those of the mask."""
    model = in_memory("phase", targets=("embolus", "infarct"))
    wanted = Wanted(probabilities=True, attention=True, precision="fp32")
    predict(model, scans, tmp_path / "out", naming=patients(), wanted=wanted)
    parts = read_rows(tmp_path / "out" / "components.csv")
    for row in read_rows(tmp_path / "out" / "sources.csv"):
        source = nib.load(row["file"])
        soft = nib.load(tmp_path / "out" / "probabilities" / f"{row['series']}_embolus.nii.gz")
        mask = nib.load(tmp_path / "out" / "masks" / f"{row['series']}_embolus.nii.gz")
        attention = nib.load(tmp_path / "out" / "attention" / f"{row['series']}.nii.gz")
        for image in (soft, mask, attention):
            assert np.array_equal(image.affine, source.affine)
            assert image.shape == source.shape
        inside = np.asanyarray(mask.dataobj)
        assert np.array_equal(inside > 0, np.asanyarray(soft.dataobj) >= 0.5)
        own = [part for part in parts if part["series"] == row["series"] and part["target"] == "embolus"]
        assert sum(int(part["voxels"]) for part in own) == int(inside.sum())
        voxel = abs(np.linalg.det(source.affine[:3, :3]))
        assert sum(float(part["volume_mm3"]) for part in own) == pytest.approx(inside.sum() * voxel)
        centre = np.average(
            [[float(part[axis]) for axis in ("x_mm", "y_mm", "z_mm")] for part in own],
            axis=0,
            weights=[int(part["voxels"]) for part in own],
        )
        places = nib.affines.apply_affine(source.affine, np.argwhere(inside > 0)).mean(0)
        assert np.allclose(centre, places, atol=1e-3)


def test_n1_a_ctpa_beside_it_changes_no_bit_of_a_series(scans: Path, tmp_path: Path) -> None:
    """N1: the non-contrast series alone, and beside another series of the same patient: the same bytes."""
    model = in_memory("phase")
    write_nifti(tmp_path / "alone" / "P01" / "ct.nii.gz", body(0))
    write_nifti(tmp_path / "both" / "P01" / "ct.nii.gz", body(0))
    write_nifti(tmp_path / "both" / "P01" / "ctpa.nii.gz", body(3))
    found = []
    for name in ("alone", "both"):
        predict(model, tmp_path / name, tmp_path / f"out-{name}", naming=patients(), wanted=FP32)
        sources = read_rows(tmp_path / f"out-{name}" / "sources.csv")
        series = next(row["series"] for row in sources if row["file"].endswith("/ct.nii.gz"))
        row = next(row for row in read_rows(tmp_path / f"out-{name}" / "predictions.csv") if row["series"] == series)
        mask = np.asanyarray(nib.load(tmp_path / f"out-{name}" / "masks" / f"{series}.nii.gz").dataobj)
        found.append(({**row, "series": ""}, mask.tobytes()))
    assert found[0] == found[1]


def bad_inputs(folder: Path) -> dict[str, str]:
    """Write one file per kind of bad input; return {patient: code of its refusal}."""
    good = body(0)
    values = good.voxels.astype(np.float32)
    affine = good.affine[:, [2, 1, 0, 3]]

    def write(name: str, array: np.ndarray, at: np.ndarray = affine) -> None:
        image = nib.Nifti1Image(np.ascontiguousarray(array.T), at)
        image.set_qform(at, code=1)
        image.set_sform(at, code=1)
        nib.save(image, folder / f"{name}.nii.gz")

    nan = values.copy()
    nan[5, 5, 5] = np.nan
    write("P01", nan)
    write("P02", values * 40)
    nib.save(nib.Nifti1Image(np.stack([values.T, values.T], -1), affine), folder / "P03.nii.gz")
    write("P04", values[:12])
    colour = np.zeros(values.T.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, affine), folder / "P05.nii.gz")
    flat = affine.copy()
    flat[:3, 0] = 0
    header = nib.Nifti1Image(np.ascontiguousarray(values.T), affine).header
    header.set_sform(flat, code=1)
    header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(values.T), None, header), folder / "P06.nii.gz")
    (folder / "P07.nii.gz").write_bytes(b"")
    (folder / "P08.nii.gz").write_bytes(b"\x1f\x8b no gzip")
    return {
        "P01": "non-finite-values",
        "P02": "bad-rescale",
        "P03": "four-dimensional",
        "P04": "too-few-slices",
        "P05": "not-scalar",
        "P06": "bad-geometry",
        "P07": "not-an-image",
        "P08": "unreadable",
    }


def test_g6_bad_input_is_named_with_its_patient_and_the_batch_goes_on(tmp_path: Path) -> None:
    """G6: NaN, HU out of range, 4-D, RGB, few slices, singular spacing, empty and unreadable files."""
    (tmp_path / "scans").mkdir()
    wanted = bad_inputs(tmp_path / "scans")
    write_nifti(tmp_path / "scans" / "P09.nii.gz", body(1))
    (tmp_path / "scans" / "LICENSE").write_text("free")
    summary = predict(in_memory("phase"), tmp_path / "scans", tmp_path / "out", naming=patients(), wanted=FP32)
    found = {patient: code for patient, _, code, _ in summary.failed}
    assert {p: c for p, c in found.items() if c != wanted[p]} == {}
    assert found.keys() == wanted.keys()
    rows = {row.patient: row for row in read_predictions(tmp_path / "out" / "predictions.csv")}
    assert rows.keys() == {*wanted, "P09"}
    assert not rows["P09"].failed
    assert all(rows[patient].failed and rows[patient].error.startswith(code) for patient, code in wanted.items())
    ledger = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    assert {line["patient"]: line["code"] for line in ledger} == {**wanted, "P09": ""}


def test_a_store_is_predicted_under_its_own_names_and_splits(scans: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        ingest([scans], tmp_path / "store", executor=executor)
    entries = Store.open(tmp_path / "store").entries
    rows = "".join(f"{entry.patient},{split}\n" for entry, split in zip(entries, ("train", "test"), strict=True))
    (tmp_path / "store" / "splits.csv").write_text("patient,split\n" + rows)
    model = in_memory("phase")
    predict(model, tmp_path / "store", tmp_path / "out", wanted=FP32)
    found = read_predictions(tmp_path / "out" / "predictions.csv")
    assert [(row.patient, row.series, row.split) for row in found] == [
        (entry.patient, entry.id, split) for entry, split in zip(entries, ("train", "test"), strict=True)
    ]
    key = load_key(tmp_path / "store.key", expected=None)
    predict(model, scans, tmp_path / "files", naming=Naming(PatientNames(), key), wanted=FP32)
    from_files = {row.series: row for row in read_predictions(tmp_path / "files" / "predictions.csv")}
    assert not (tmp_path / "files" / "sources.csv").exists()
    for row in found:
        assert from_files[row.series].probability == row.probability
        assert from_files[row.series].patient == row.patient
        masks = [nib.load(tmp_path / out / "masks" / f"{row.series}.nii.gz") for out in ("out", "files")]
        assert np.allclose(masks[0].affine, masks[1].affine, atol=1e-5)
        assert np.array_equal(np.asanyarray(masks[0].dataobj), np.asanyarray(masks[1].dataobj))


def test_a_dicom_source_gets_a_segmentation_that_says_what_the_nifti_says(tmp_path: Path) -> None:
    volume = body(0).oriented("IPL")
    values = volume.voxels.astype(np.int16)
    place = volume.affine[:3, 3] * (-1, -1, 1)
    paths = write_series(
        tmp_path / "dicom",
        values,
        stacked(place, AXIAL, -volume.spacing[0] * np.arange(len(values))),
        spacing=(volume.spacing[1], volume.spacing[2]),
        change=framed,
    )
    predict(in_memory("phase"), tmp_path / "dicom", tmp_path / "out", wanted=FP32)
    row = read_predictions(tmp_path / "out" / "predictions.csv")[0]
    assert row.patient == "PATIENT-1"
    image = nib.load(tmp_path / "out" / "masks" / f"{row.series}.nii.gz")
    mask = np.asanyarray(image.dataobj).transpose(2, 1, 0)
    assert 0 < mask.mean() < 1
    found = highdicom.seg.segread(tmp_path / "out" / "masks" / f"{row.series}.dcm")
    uids = [dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in paths]
    pixels = found.get_pixels_by_source_instance(
        source_sop_instance_uids=uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )[..., 0]
    heights = nib.affines.apply_affine(image.affine, [[0, 0, k] for k in range(len(mask))])[:, 2]
    wanted = mask if heights[0] > heights[-1] else mask[::-1]
    assert np.array_equal(pixels, wanted)
    ledger = json.loads((tmp_path / "out" / "ledger.jsonl").read_text())
    assert ledger["notes"] == []


def test_a_batch_that_stopped_goes_on_and_failures_are_tried_again(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = loaded(tmp_path / "model", "phase"), []
    original = one.predict_series

    def counted(*arguments: object, **named: object) -> object:
        calls.append(1)
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(one, "predict_series", counted)
    broken = scans / "P03"
    broken.mkdir()
    (broken / "ct.nii.gz").write_bytes(b"")
    predict(model, scans, tmp_path / "out", naming=patients(), wanted=FP32)
    with open(tmp_path / "out" / "ledger.jsonl", "a") as ledger:
        ledger.write('{"series": "cut short by a k')
    write_nifti(broken / "ct.nii.gz", body(2))
    summary = predict(model, scans, tmp_path / "out", naming=patients(), wanted=FP32)
    assert (summary.series, summary.kept, summary.failed, len(calls)) == (3, 2, [], 3)
    predict(model, scans, tmp_path / "whole", naming=patients(), wanted=FP32)
    tables = [(tmp_path / name / "predictions.csv").read_text() for name in ("out", "whole")]
    assert tables[0] == tables[1]


def test_a_folder_of_another_model_or_of_something_else_is_refused(scans: Path, tmp_path: Path) -> None:
    predict(loaded(tmp_path / "a", "phase"), scans, tmp_path / "out", wanted=FP32)
    with pytest.raises(ArtefactError, match="predictions of another model"):
        predict(loaded(tmp_path / "b", "phase", seed=1), scans, tmp_path / "out", wanted=FP32)
    with pytest.raises(ArtefactError, match="another model and settings"):
        predict(loaded(tmp_path / "a2", "phase"), scans, tmp_path / "out", wanted=Wanted(overlap=0.25))
    with pytest.raises(ArtefactError, match="exists and holds no predictions"):
        predict(in_memory("phase"), scans, tmp_path, wanted=FP32)


def test_nothing_to_predict_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "note.txt").write_text("nothing")
    with pytest.raises(DataError, match="no CT series for this model"):
        predict(in_memory("phase"), tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="expected one of csv, parquet, json"):
        predict(in_memory("phase"), tmp_path / "empty", tmp_path / "out", table_format="xlsx")
    assert read_policy("CT").min_slices == 16
    assert read_policy("CT", ["tilt=resample", "min_slices=9"]).tilt == "resample"


def test_logits_that_are_not_finite_are_a_failure_not_a_number(scans: Path, tmp_path: Path) -> None:
    model = in_memory("classifier")
    assert isinstance(model, PublishedModel)
    next(model.module.get_submodule("head").parameters()).fill_(np.inf)
    summary = predict(model, scans, tmp_path / "out", wanted=FP32)
    assert {code for *_, code, _ in summary.failed} == {"not-predicted"}


def test_rule_volume_decides_by_cubic_millimetres(scans: Path, tmp_path: Path) -> None:
    predict(in_memory("segmenter"), scans, tmp_path / "plain", naming=patients(), wanted=FP32)
    volumes = [float(row["volume_mm3"]) for row in read_rows(tmp_path / "plain" / "predictions.csv")]
    assert volumes[0] != volumes[1]
    at = Decision("volume", {"lesion": max(volumes)})
    predict(in_memory("segmenter", decision=at), scans, tmp_path / "out", naming=patients(), wanted=FP32)
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    assert [row["decision"] for row in rows] == [str(int(volume == max(volumes))) for volume in volumes]
    assert {row["rule"] for row in rows} == {"volume"}
    assert {row["threshold"] for row in rows} == {""}
    assert {float(row["score_threshold"]) for row in rows} == {max(volumes)}

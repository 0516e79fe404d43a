"""`fmct evaluate` on a small cohort: results, report, and every way of asking wrongly."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from fmct.cli import main
from fmct.errors import DataError
from fmct.evaluate.classification import Settings
from fmct.evaluate.evaluation import Evaluation, evaluate, read_model
from fmct.evaluate.segmentation import measure_masks
from fmct.inference.predictions import Prediction, read_predictions, write_predictions
from fmct.metrics.contrasts import Contrast, holm
from fmct.metrics.delong import auroc, paired_delong
from tests.evaluate.small_cohort import AFFINE, SHAPE, write_cohort

QUICK = Settings(resamples=100)
TITLES = ("In short", "Who was counted", "Ranking", "Decisions", "Calibration", "Model against model", "Masks")
TITLES += ("Lesions", "Subgroups", "Series by series", "Seed by seed", "Worst cases", "How it was measured")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cohort")
    write_cohort(place)
    return place


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    models = [read_model(str(folder / name))[0] for name in ("strong", "weak")]
    return evaluate(
        models, folder / "labels.csv", settings=QUICK, by=["site", "age"], contrasts=[Contrast("strong", "weak")]
    )


@pytest.fixture(scope="module")
def written(folder: Path) -> tuple[Path, dict[str, Any], str]:
    """Return OUT, results.json and the page of one command that compares two models."""
    out = folder / "out"
    code = main(
        ["evaluate", str(folder / "strong"), f"base={folder / 'weak'}", str(folder / "labels.csv"), str(out),
         "--by", "site", "--masks", str(folder / "references"), "--scans", str(folder / "scans"),
         "--resamples", "100", "--tolerance", "2"]
    )  # fmt: skip
    assert code == 0
    return out, json.loads((out / "results.json").read_text()), (out / "report.html").read_text()


def test_values_are_scikit_learns_on_the_test_patients(folder: Path, evaluation: Evaluation) -> None:
    rows = [
        p for p in read_predictions(folder / "strong" / "predictions.csv") if p.target == "pe" and p.split == "test"
    ]
    labels = {
        row["patient"]: int(row["pe"]) for row in csv.DictReader((folder / "labels.csv").read_text().splitlines())
    }
    by_series: dict[tuple[str, str], list[float]] = {}
    for p in rows:
        by_series.setdefault((p.patient, p.series), []).append(p.probability)
    by_patient: dict[str, float] = {}
    for (patient, _), values in by_series.items():
        by_patient[patient] = max(by_patient.get(patient, 0.0), float(np.mean(values)))
    names = [name for name in sorted(by_patient) if name != "P20"]
    y, p = [labels[name] for name in names], [by_patient[name] for name in names]
    finding = evaluation.findings["strong"]["pe"]
    assert finding.metrics["AUROC"].estimate == pytest.approx(roc_auc_score(y, p))
    assert finding.metrics["AUPRC"].estimate == pytest.approx(average_precision_score(y, p))
    assert finding.metrics["Brier score"].estimate == pytest.approx(np.mean((np.array(p) - y) ** 2))
    assert (finding.metrics["AUROC"].n, len(finding.scores.labels)) == (23, 24)


def test_the_threshold_is_chosen_on_validation_and_never_on_test(folder: Path, evaluation: Evaluation) -> None:
    """M9: with every test probability turned around, the threshold stays to the bit."""
    finding = evaluation.findings["strong"]["pe"]
    assert finding.operating_point is not None
    assert finding.operating_point.positives + finding.operating_point.negatives == 16
    model, _ = read_model(str(folder / "strong"))
    turned = [replace(p, probability=1 - p.probability) if p.split == "test" else p for p in model.predictions]
    again = evaluate([replace(model, predictions=turned)], folder / "labels.csv", settings=QUICK)
    assert again.findings["strong"]["pe"].operating_point == finding.operating_point
    assert again.findings["strong"]["pe"].calibrated["temperature"] == finding.calibrated["temperature"]


def test_a_frozen_threshold_wins_over_validation(folder: Path) -> None:
    model, _ = read_model(str(folder / "strong"))
    frozen = replace(model, predictions=[replace(p, threshold=0.42) for p in model.predictions])
    finding = evaluate([frozen], folder / "labels.csv", settings=QUICK).findings["strong"]["pe"]
    assert finding.operating_point is None
    assert finding.scores.thresholds == (0.42,)


def test_no_threshold_means_no_decision_and_a_reason(folder: Path) -> None:
    """N7: probabilities only."""
    model, _ = read_model(str(folder / "strong"))
    test = replace(model, predictions=[p for p in model.predictions if p.split == "test"])
    finding = evaluate([test], folder / "labels.csv", settings=QUICK).findings["strong"]["pe"]
    assert "no threshold" in str(finding.metrics["sensitivity"])
    assert finding.metrics["AUROC"].estimate is not None


def test_failed_scans_lower_sensitivity_or_specificity(evaluation: Evaluation) -> None:
    scores = evaluation.findings["strong"]["pe"].scores
    k = scores.patients.index("P20")
    name = "sensitivity" if scores.labels[k] else "specificity"
    found = evaluation.findings["strong"]["pe"].metrics[name]
    same = scores.labels == scores.labels[k]
    right = (scores.decisions == scores.labels)[same & ~scores.failed].sum()
    assert found.estimate == pytest.approx(right / same.sum())
    assert found.n == same.sum()
    worst = evaluation.findings["strong"]["pe"].metrics["AUROC, failed scans ranked worst"].estimate
    assert worst is not None
    assert worst < evaluation.findings["strong"]["pe"].metrics["AUROC"].estimate  # type: ignore[operator]
    assert any("every scan of 1 patient failed" in note for note in evaluation.notes)


def test_series_level_stands_beside_patient_level(evaluation: Evaluation) -> None:
    patient, series = evaluation.findings["weak"]["pe"], evaluation.by_series["weak"]["pe"]
    assert (len(patient.scores.labels), len(series.scores.labels)) == (24, 30)
    assert series.metrics["AUROC"].n == 23  # intervals are over patients
    kept = series.scores.only(~series.scores.failed)
    naive = auroc(kept.probabilities, kept.labels)
    assert series.found.variance != pytest.approx(naive.variance)


def test_macro_means_over_findings(evaluation: Evaluation) -> None:
    found = evaluation.findings["weak"]
    for metric in ("AUROC", "AUPRC", "sensitivity", "specificity", "F1"):
        mean = np.mean([found[target].metrics[metric].estimate for target in ("pe", "strain")])
        assert evaluation.macro["weak"][metric].estimate == pytest.approx(mean)
    assert evaluation.macro["weak"]["AUROC"].low is not None


def test_two_models_are_compared_in_pairs(evaluation: Evaluation) -> None:
    found = {(c.target, c.metric): c for c in evaluation.comparisons}
    a, b = (evaluation.findings[m]["pe"] for m in ("strong", "weak"))
    gain = paired_delong(a.found, b.found)
    assert found["pe", "AUROC"].p == gain.p
    tested = [found[target, "AUROC"] for target in ("pe", "strain")]
    assert [c.p_holm for c in tested] == holm([c.p for c in tested])
    rows = a.scores.labels == 0
    only_a = ((a.scores.decisions == 0) & (b.scores.decisions != 0) & rows & ~a.scores.failed).sum()
    assert f"McNemar, exact: {only_a} against" in found["pe", "specificity"].test
    assert found["mean of all findings", "AUROC"].p_holm == found["mean of all findings", "AUROC"].p
    assert found["pe", "AUPRC"].difference.estimate == pytest.approx(
        a.metrics["AUPRC"].estimate - b.metrics["AUPRC"].estimate  # type: ignore[operator]
    )


def test_subgroups_are_the_patients_of_each_value(evaluation: Evaluation) -> None:
    sites = [g for g in evaluation.subgroups if g.column == "site" and g.model == "strong" and g.target == "pe"]
    assert [(g.value, g.patients) for g in sites] == [("A", 12), ("B", 12)]
    ages = [g for g in evaluation.subgroups if g.column == "age" and g.model == "strong" and g.target == "pe"]
    assert sum(g.patients for g in ages) == 24
    assert len(ages) == 3
    assert ages[0].value.startswith("up to")


def test_one_class_is_not_available_with_the_reason(folder: Path, tmp_path: Path) -> None:
    """M4: one class only."""
    (tmp_path / "labels.csv").write_text("patient,pe,strain\n" + "".join(f"P{k:02d},1,1\n" for k in range(16, 40)))
    model, _ = read_model(str(folder / "strong"))
    found = evaluate([model], tmp_path / "labels.csv", settings=QUICK).findings["strong"]["pe"]
    assert str(found.metrics["AUROC"]) == "n/a (undefined: 23 positive patients and 0 negative patients)"
    assert "one class" in found.metrics["AUPRC"].note
    assert found.metrics["calibration slope"].estimate is None


def test_the_page_is_one_file_with_every_section(written: tuple[Path, dict[str, Any], str]) -> None:
    _, _, page = written
    for title in TITLES:
        assert f"<h2>{title}</h2>" in page
    assert page.count("data:image/png;base64,") == 3  # curves, FROC, slices of the worst cases
    assert not re.search(r"<script|<link|https?://", page)
    assert "26-connected" in page
    assert "within 2 mm" in page
    assert "Not a medical device" in page


def test_results_are_plain_json_and_csv(written: tuple[Path, dict[str, Any], str]) -> None:
    out, results, page = written
    assert results["format"] == {"name": "fmct-evaluation", "version": "1.0"}
    finding = next(f for f in results["findings"] if f["model"] == "base" and f["target"] == "pe")
    assert finding["operating_point"]["positives"] + finding["operating_point"]["negatives"] == 16
    assert f"{finding['metrics']['AUROC']['estimate']:.3f}" in page
    assert results["segmentation"]["strong"]["matching_rule"]["connectivity"] == 26
    rows = list(csv.DictReader((out / "patients.csv").read_text().splitlines()))
    assert {row["model"] for row in rows} == {"strong", "base"}
    assert sum(row["failed"] == "1" for row in rows) == 4  # one patient, two models, two targets


def test_masks_are_scored_by_patient(written: tuple[Path, dict[str, Any], str]) -> None:
    _, results, _ = written
    strong, weak = results["segmentation"]["strong"], results["segmentation"]["base"]
    assert strong["summary"]["Dice"]["estimate"] == pytest.approx(2 * 32 / (32 + 48))
    assert weak["summary"]["Dice"]["estimate"] == pytest.approx(2 * 4 / (8 + 48))
    assert strong["predicted_ml_without_lesion"]["estimate"] == 0
    assert weak["predicted_ml_without_lesion"]["estimate"] == pytest.approx(4 * 12 / 1000)
    assert strong["froc"]["sensitivity_at_fp_per_subject"]["0.125"]["estimate"] == 1
    assert weak["froc"]["all_candidates"]["fp_per_subject"]["estimate"] == pytest.approx(1)
    assert {r["first"] for r in results["mask_contrasts"]["Dice"]} == {"base"}


def test_masks_on_another_grid_or_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "predicted").mkdir()
    (tmp_path / "references").mkdir()
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:4, 2:4, 2:4] = 1

    def save(place: str, affine: np.ndarray, voxels: np.ndarray = mask) -> None:
        nib.save(nib.Nifti1Image(voxels.T, affine), tmp_path / place)  # type: ignore[attr-defined]

    save("references/s1.nii.gz", AFFINE)
    missing = measure_masks("m", tmp_path / "predicted", tmp_path / "references", {"s1": "p1"})
    assert missing.summary["Dice"].estimate == 0
    assert "counted as an empty one" in missing.notes[0]
    save("predicted/s1.nii.gz", AFFINE + np.diag([0, 0, 0.5, 0]))
    with pytest.raises(DataError, match="not on one grid"):
        measure_masks("m", tmp_path / "predicted", tmp_path / "references", {"s1": "p1"})
    save("predicted/s1.nii.gz", AFFINE, mask[:-1])
    with pytest.raises(DataError, match=r"\(9, 16, 16\) and \(10, 16, 16\)"):
        measure_masks("m", tmp_path / "predicted", tmp_path / "references", {"s1": "p1"})
    save("predicted/s1.nii.gz", AFFINE, mask * 300.0)
    with pytest.raises(DataError, match="mask of 0 and 1"):
        measure_masks("m", tmp_path / "predicted", tmp_path / "references", {"s1": "p1"})
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 2.0 * (SHAPE[2] - 1)
    save("predicted/s1.nii.gz", flipped, mask[..., ::-1])  # the same mask, stored the other way round
    assert (
        measure_masks("m", tmp_path / "predicted", tmp_path / "references", {"s1": "p1"}).summary["Dice"].estimate == 1
    )
    with pytest.raises(DataError, match="named by a predicted series"):
        measure_masks("m", tmp_path / "predicted", tmp_path / "references", {"s9": "p1"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--contrast", "strong,other"], "no model is called 'other'"),
        (["--by", "ward"], "no such column; there are age, site"),
        (["--split", "holdout"], "no prediction of the split holdout"),
        (["--prevalence", "2"], "between 0 and 1"),
        (["--masks", "nowhere"], "no such folder of masks"),
        (["--scans", "nowhere"], "no such folder of scans"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], said: str
) -> None:
    base = [str(folder / "strong"), str(folder / "labels.csv"), str(tmp_path / "out"), "--resamples", "100"]
    assert main(["evaluate", *base, *change]) == 2
    assert said in capsys.readouterr().err


def test_other_mistakes_are_explained(folder: Path, tmp_path: Path) -> None:
    model, _ = read_model(str(folder / "strong"))
    labels = folder / "labels.csv"
    with pytest.raises(DataError, match="two are called strong"):
        evaluate([model, model], labels)
    with pytest.raises(DataError, match=r"no predictions\.csv"):
        read_model(str(tmp_path))
    with pytest.raises(DataError, match="no such table"):
        read_model(str(tmp_path / "absent.csv"))
    (tmp_path / "labels.csv").write_text("patient,pe,strain\nQ1,1,0\n")
    with pytest.raises(DataError, match="no predicted patient has a known label"):
        evaluate([model], tmp_path / "labels.csv")
    leaking = [*model.predictions, Prediction("P00", "P00x", "pe", 0.5, split="test")]
    with pytest.raises(DataError, match="in validation and in what is scored"):
        evaluate([replace(model, predictions=leaking)], labels)


def test_table_in_another_format_and_name(folder: Path, tmp_path: Path) -> None:
    model, _ = read_model(str(folder / "strong"))
    write_predictions(tmp_path / "a" / "predictions.parquet", model.predictions)
    assert read_model(str(tmp_path / "a"))[0].name == "a"
    named, place = read_model(f"dual={tmp_path / 'a' / 'predictions.parquet'}")
    assert (named.name, place) == ("dual", tmp_path / "a")
    assert len(named.predictions) == len(model.predictions)

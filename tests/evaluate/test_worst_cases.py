from pathlib import Path

import numpy as np
import pytest

from fmct.errors import DataError
from fmct.evaluate.classification import Settings
from fmct.evaluate.evaluation import Evaluation, evaluate, read_model, with_masks
from fmct.evaluate.segmentation import measure_masks
from fmct.evaluate.worst_cases import Case, case_figure, scans_of, worst_cases
from fmct.volume import Volume
from tests.evaluate.small_cohort import write_cohort


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cases")
    write_cohort(place)
    return place


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    return evaluate([read_model(str(folder / "weak"))[0]], folder / "labels.csv", settings=Settings(resamples=100))


def test_the_worst_are_the_most_wrong(evaluation: Evaluation) -> None:
    cases = [case for case in worst_cases(evaluation, count=3) if case.target == "pe"]
    scores = evaluation.findings["weak"]["pe"].scores
    errors = np.nan_to_num(np.abs(scores.probabilities - scores.labels), nan=-1)
    expected = [scores.patients[k] for k in np.argsort(-errors)[:3] if errors[k] >= 0.5]
    assert [case.patient for case in cases] == expected
    assert cases[0].why.startswith(("positive, probability 0.", "negative, probability 0."))


def test_of_masks_the_lowest_dice_and_the_largest_false_alarms(folder: Path, evaluation: Evaluation) -> None:
    scored = {p: p[:3] for p in (path.name[:4] for path in (folder / "references").iterdir())}
    result = measure_masks("weak", folder / "weak" / "masks", folder / "references", scored, resamples=100)
    cases = [c for c in worst_cases(with_masks(evaluation, {"weak": result}), count=2) if c.target == "masks"]
    assert [c.why for c in cases] == ["Dice 0.14"] * 2 + ["no lesion, 0.05 ml predicted"] * 2
    picture, notes = case_figure(cases, scans_of(folder / "scans"))
    assert picture.startswith(b"\x89PNG")
    assert notes == []


def test_scans_are_found_by_series_in_a_folder(folder: Path) -> None:
    scans = scans_of(folder / "scans")
    found = scans("P28a")
    assert found is not None
    assert found.units == "HU"
    assert scans("P99a") is None
    with pytest.raises(DataError, match="no such folder of scans"):
        scans_of(folder / "absent")


def test_a_refused_or_missing_scan_is_a_note_and_not_the_end(folder: Path) -> None:
    real = scans_of(folder / "scans")

    def scans(name: str) -> Volume | None:
        if name == "bad":
            raise DataError("implausible-hu: no air")
        return real(name)

    cases = [Case("m", "pe", name, name, "positive, probability 0.10") for name in ("P28a", "bad", "gone")]
    picture, notes = case_figure(cases, scans)
    assert picture.startswith(b"\x89PNG")
    assert notes == [
        "bad is not shown: implausible-hu: no air",
        "gone is not shown: no scan of this name, or of patient gone.",
    ]
    assert case_figure(cases[1:], scans)[0] == b""

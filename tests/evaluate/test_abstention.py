"""A model that may abstain: how often it does, and how good it is otherwise, in JSON, CSV and report."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmct.artefacts import write_json
from fmct.cli import main
from fmct.errors import ArtefactError
from fmct.evaluate.evaluation import read_model
from fmct.inference.predictions import FORMAT, RECORD, Prediction, write_predictions
from fmct.metrics.intervals import wilson_interval
from fmct.publish.decision import Decision, write_decision

NAN = float("nan")
DECISION = Decision(thresholds={"pe": 0.4}, abstain={"pe": (0.3, 0.7)})
# (label, probability): the band holds its lower end and not its upper one; the threshold is positive; one scan failed
CASES = [
    (1, 0.9), (1, 0.7), (1, 0.699), (1, 0.3), (1, 0.299), (1, 0.95), (1, 0.8),
    (0, 0.1), (0, 0.2), (0, 0.4), (0, 0.75), (0, 0.05), (0, 0.15), (0, 0.299), (0, NAN),
]  # fmt: skip


def write(folder: Path, *, decision: Decision = DECISION, seed: str = "", shift: float = 0.0) -> None:
    """Write a folder as `fmct predict` leaves it: the table, and the record with the model's decision."""
    rows = []
    for number, (_, p) in enumerate(CASES):
        failed = np.isnan(p)
        threshold = NAN if failed else decision.thresholds["pe"]
        decided = None if failed else int(p + shift >= threshold)
        rows.append(
            Prediction(f"P{number:02d}", f"s{number}", "pe", p + shift, decision=decided, threshold=threshold,
                       seed="" if failed else seed, error="unreadable" if failed else "")
        )  # fmt: skip
    write_predictions(folder / "predictions.csv", rows)
    write_json(folder / RECORD, *FORMAT, {"decision": decision.to_dict(), "notes": []})


def labels(folder: Path) -> Path:
    path = folder / "labels.csv"
    path.write_text("patient,pe\n" + "".join(f"P{k:02d},{label}\n" for k, (label, _) in enumerate(CASES)))
    return path


def evaluated(tmp_path: Path, *predictions: str, more: tuple[str, ...] = ()) -> tuple[dict[str, Any], str, list[dict]]:
    """Return results.json, the page, and the rows of patients.csv."""
    out = tmp_path / "out"
    words = [*predictions, str(labels(tmp_path)), str(out), "--resamples", "100", *more]
    assert main(["evaluate", *words]) == 0
    rows = list(csv.DictReader((out / "patients.csv").read_text().splitlines()))
    return json.loads((out / "results.json").read_text()), (out / "report.html").read_text(), rows


def test_uncertain_cases_are_counted_and_the_others_judged_by_themselves(tmp_path: Path) -> None:
    write(tmp_path / "gate", seed="7")
    results, page, rows = evaluated(tmp_path, str(tmp_path / "gate"))
    finding, text = results["findings"][0], re.sub(r"<[^>]+>", "", page)
    assert finding["abstention"] == {"bands": [[0.3, 0.7]], "uncertain": 3, "uncertain, positive": 2, "decided": 12}
    calls = {row["patient"]: row["call"] for row in rows}
    assert [p for p, call in calls.items() if call == "uncertain"] == ["P02", "P03", "P09"]
    assert (calls["P01"], calls["P04"], calls["P14"]) == ("yes", "no", "")
    expected = {
        "share uncertain": (3, 15),
        "accuracy, decided cases": (9, 12),  # wrong: a miss, a false alarm, a failed scan
        "sensitivity, decided cases": (4, 5),
        "specificity, decided cases": (5, 7),
    }
    for name, (hits, cases) in expected.items():
        wilson = wilson_interval(hits, cases)
        found = finding["metrics"][name]
        assert (found["n"], found["method"]) == (cases, "wilson")
        if cases < 6:
            assert (found["estimate"], found["low"]) == (pytest.approx(hits / cases), None)
        else:
            bounds = [found[bound] for bound in ("estimate", "low", "high")]
            assert bounds == pytest.approx([wilson.estimate, wilson.low, wilson.high])
            assert f"{hits}/{cases} = {hits / cases:.3f} [{wilson.low:.3f}, {wilson.high:.3f}]" in text
    assert finding["metrics"]["sensitivity"]["estimate"] == pytest.approx(5 / 7)  # the threshold alone, as before
    assert all(name in text for name in [*list(expected)[1:], "0.3 to 0.7"])


def test_without_a_band_nothing_is_said(tmp_path: Path) -> None:
    write(tmp_path / "plain", decision=Decision(thresholds={"pe": 0.4}))
    results, page, rows = evaluated(tmp_path, str(tmp_path / "plain"))
    assert results["findings"][0]["abstention"] is None
    assert "share uncertain" not in results["findings"][0]["metrics"]
    assert "decided cases" not in page
    assert "call" not in rows[0]


def test_bands_of_seeds_are_averaged_as_their_thresholds_are(tmp_path: Path) -> None:
    write(tmp_path / "model" / "seed-0", shift=0.04)
    write(
        tmp_path / "model" / "seed-1", shift=-0.02,
        decision=Decision(thresholds={"pe": 0.5}, abstain={"pe": (0.1, 0.9)}),
    )  # fmt: skip
    results, _, rows = evaluated(tmp_path, str(tmp_path / "model"))
    assert results["findings"][0]["abstention"]["bands"] == [[pytest.approx(0.2), pytest.approx(0.8)]]
    within = [f"P{k:02d}" for k, (_, p) in enumerate(CASES) if 0.2 <= p + 0.01 < 0.8]
    assert [row["patient"] for row in rows if row["call"] == "uncertain"] == within
    assert len(within) == 8


def test_a_model_that_abstains_stands_beside_one_that_does_not(tmp_path: Path) -> None:
    write(tmp_path / "gate")
    write(tmp_path / "plain", decision=Decision(thresholds={"pe": 0.5}))
    results, page, rows = evaluated(tmp_path, str(tmp_path / "gate"), str(tmp_path / "plain"))
    told = {finding["model"]: finding["abstention"] for finding in results["findings"]}
    assert told["plain"] is None
    assert told["gate"]["uncertain"] == 3
    assert {row["call"] for row in rows if row["model"] == "plain"} == {""}
    assert page.count("0.3 to 0.7") == 1


def test_series_by_series_draws_patients(tmp_path: Path) -> None:
    write(tmp_path / "gate")
    results, _, _ = evaluated(tmp_path, str(tmp_path / "gate"), more=("--unit", "series"))
    found = results["findings"][0]["metrics"]["share uncertain"]
    assert found["estimate"] == pytest.approx(3 / 15)
    assert found["method"] != "wilson"


def test_the_band_is_that_of_the_tables_own_model(tmp_path: Path) -> None:
    """A run's decision.json is of its predictions.csv; not of another table in the folder, nor of other thresholds."""
    write(tmp_path / "run")
    (tmp_path / "run" / RECORD).unlink()
    assert read_model(str(tmp_path / "run"))[0].bands == {}
    write_decision(tmp_path / "run", DECISION)
    assert read_model(str(tmp_path / "run"))[0].bands == {("", "pe"): (0.3, 0.7)}
    (tmp_path / "run" / "predictions_hu.csv").write_bytes((tmp_path / "run" / "predictions.csv").read_bytes())
    assert read_model(str(tmp_path / "run" / "predictions_hu.csv"))[0].bands == {}
    write_decision(tmp_path / "run", Decision(thresholds={"pe": 0.45}, abstain={"pe": (0.3, 0.7)}))
    assert read_model(str(tmp_path / "run"))[0].bands == {}
    write_json(tmp_path / "run" / RECORD, *FORMAT, {"decision": {"abstain": {"pe": [0.3]}}})
    with pytest.raises(ArtefactError, match="not a usable decision"):
        read_model(str(tmp_path / "run"))

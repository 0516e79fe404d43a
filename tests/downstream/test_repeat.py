from pathlib import Path

import pytest

from fmct.config import build, read_tree
from fmct.downstream.config import FineTuning
from fmct.downstream.repeat import repeated
from fmct.errors import ConfigError
from fmct.evaluate.evaluation import read_model
from fmct.evaluate.patient_scores import read_truth, score_units
from fmct.inference.predictions import Prediction, write_predictions

GIVEN = ["output=RUN", "steps=1", "batch_size=1", "recipe=x"]


def configs(*words: str) -> list[FineTuning]:
    return repeated(build(FineTuning, read_tree([], [*GIVEN, *words])))


def test_each_seed_is_the_run_that_it_would_be_alone() -> None:
    found = configs("repeat.seeds=[0,3]", "seed=9")
    alone = [build(FineTuning, read_tree([], [*GIVEN, f"seed={k}", f"output=RUN/seed-{k}"])) for k in (0, 3)]
    assert found == alone
    assert [config.output for config in configs()] == ["RUN"]


def test_draws_of_few_patients_are_repeated_beside_seeds() -> None:
    found = configs("repeat.seeds=[0,1]", "repeat.draws=[4,5]", "shots.patients=8")
    assert [(c.output, c.seed, c.shots.seed, c.shots.patients) for c in found] == [
        ("RUN/seed-0-draw-4", 0, 4, 8),
        ("RUN/seed-0-draw-5", 0, 5, 8),
        ("RUN/seed-1-draw-4", 1, 4, 8),
        ("RUN/seed-1-draw-5", 1, 5, 8),
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("repeat.draws=[0,1]",), "shots.patients=N"),
        (("repeat.seeds=[0,0]",), "different numbers"),
        (("repeat.seeds=[-1]",), "none negative"),
    ],
)
def test_what_cannot_be_repeated_is_explained(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        configs(*words)


def test_all_tables_of_a_repeated_run_are_one_model_averaged_within_a_patient(tmp_path: Path) -> None:
    for name, value in (("seed-0", 0.2), ("seed-1", 0.6)):
        rows = [Prediction("p1", "s1", "pe", value, seed="0"), Prediction("p2", "s2", "pe", 0.5, seed="0")]
        write_predictions(tmp_path / "said" / name / "predictions.csv", rows)
    (tmp_path / "labels.csv").write_text("patient,pe\np1,1\np2,0\n")
    model, folder = read_model(f"mine={tmp_path / 'said'}")
    assert (model.name, folder) == ("mine", tmp_path / "said")
    assert {row.seed for row in model.predictions} == {"seed-0", "seed-1"}
    scores = score_units(model.predictions, read_truth(tmp_path / "labels.csv", ["pe"]), "pe", merge="max")
    assert dict(zip(scores.patients, scores.probabilities.tolist(), strict=True)) == pytest.approx(
        {"p1": 0.4, "p2": 0.5}
    )

"""The ablation's arithmetic, resumption and table; what training does is not this module's."""

import json
from pathlib import Path

import pytest

from fmct.config import build, read_tree
from fmct.demo import ablation
from fmct.demo.ablation import ARMS, AblationOptions, run_ablation, steps_in
from fmct.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def options(output: Path, train, **changes) -> AblationOptions:
    values = dict(
        output=output, arms=("joint",), seeds=(0,), minutes=1.0, steps=0, held_out=True, overrides=(), train=train
    )
    return AblationOptions(**{**values, **changes})


def test_steps_fill_the_minutes_at_the_settled_rate():
    assert steps_in(2.0, [1.0, 8.0, 8.0, 8.0], 8) == 120  # the first update compiles and warms up
    assert steps_in(0.001, [1.0], 8) == 1


def test_every_arm_is_a_configuration_of_the_demo():
    from pretrain.dino import Config

    for name, words in ARMS.items():
        tree = read_tree([ROOT / "configs" / "pretrain" / "demo.yaml"], [*words, "steps=1", "output=x"])
        weights = build(Config, tree).objective.weights
        on = {term for term in ("dino", "ibot", "pixel") if getattr(weights, term)}
        expected = {"joint": {"dino", "ibot", "pixel"}, "DINO": {"dino"}, "iBOT": {"ibot"}}
        assert on == expected.get(name, {"pixel"})


def test_unknown_arms_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="arms are joint, DINO"):
        run_ablation(options(tmp_path, lambda _: 0, arms=("MAE",)))


def test_a_pace_and_a_cell_are_measured_once(tmp_path, monkeypatch):
    asked = []

    def train(words: list[str]) -> int:
        asked.append(words)
        run = Path(next(word for word in words if word.startswith("output=")).removeprefix("output="))
        run.mkdir(parents=True)
        rows = [{"volumes_per_second": rate} for rate in (1.0, 16.0, 16.0, 16.0)]
        (run / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return 0

    monkeypatch.setattr(ablation, "load_config", lambda _: {"batch_size": 8})
    given = options(tmp_path, train)
    assert ablation._steps(given, "joint", []) == ablation._steps(given, "joint", []) == 120
    assert len(asked) == 1
    assert ablation._steps(options(tmp_path, train, steps=7), "joint", []) == 7
    assert "--fresh" in asked[0]
    with pytest.raises(ConfigError, match="exit code 76"):
        ablation._train(options(tmp_path, lambda _: 76), ["x"])

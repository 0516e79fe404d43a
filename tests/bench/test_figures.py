"""Figures beside floors and targets."""

import pytest

from fmct.bench.figures import Figure, rounded, table
from fmct.bench.targets import TARGETS, Target


def test_bounds_from_below_and_above():
    low, high = Target(15.0, "ms", "lower", "x"), Target(0.5, "", "higher", "x", goal=0.6)
    assert low.met(15.0)
    assert not low.met(15.01)
    assert high.met(0.5)
    assert not high.met(0.49)
    assert (str(low), str(high)) == ("≤ 15", "≥ 0.5, goal 0.6")


@pytest.mark.parametrize(("value", "met", "goal"), [(0.4, False, False), (0.55, True, False), (0.65, True, True)])
def test_a_figure_finds_its_target(value, met, goal):
    told = Figure("step/vit_small/share", "s", value, "", floor=1.0).to_dict()
    assert (told["met"], told["goal_met"], told["of_floor"]) == (met, goal, value)
    assert told["target"]["value"] == 0.5
    unjudged = Figure("step/vit_small/share", "s", value, "", judged=False).to_dict()
    assert (unjudged["met"], unjudged["goal_met"], unjudged["of_floor"]) == (None, None, None)


def test_a_figure_without_target_is_not_judged():
    told = Figure("views/blur", "s", 1.23456789, "ms", details={"a": [0.000123456], "b": (1, "x")}).to_dict()
    assert told["target"] is None
    assert told["met"] is None
    assert told["value"] == 1.235
    assert told["details"] == {"a": [0.0001235], "b": [1, "x"]}


def test_the_table_shows_floor_target_and_verdict():
    figures = [
        Figure("views/sample", "views", 16.0, "ms", 4.0, "copying"),
        Figure("gate/import", "import", 0.1, "s", note="fine"),
        Figure("memory/ingest", "ingest", 99.0, "× int16 size", judged=False),
        Figure("views/blur", "blur", 12345.6, "ms"),
    ]
    lines = table(figures).splitlines()
    assert lines[2].split() == ["views", "16", "ms", "4", "ms", "(4.00", "×)", "≤", "15", "NOT", "met"]
    assert lines[3].endswith("≤ 0.5   met")
    assert lines[4].endswith("not judged")
    assert "12,346 ms" in lines[5]
    assert lines[-1] == "import: fine"


def test_four_digits():
    assert [rounded(v) for v in (1234567.0, 0.00012345678, 0.0)] == [1235000.0, 0.0001235, 0.0]


def test_every_target_says_where_it_comes_from():
    for name, target in TARGETS.items():
        assert target.better in ("lower", "higher"), name
        assert len(target.source) > 10, name
        assert "issue" not in target.source

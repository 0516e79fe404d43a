"""Configurations: unknown keys are named wherever they stand, before any value is looked at."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

import finetune.pet_ct as pet_ct
from fmct.config import build, plain, read_recipe
from fmct.errors import ConfigError
from fmct.io import ReadPolicy


@dataclass(frozen=True)
class Part:
    size: int = 1


@dataclass(frozen=True)
class Whole:
    part: Part = field(default_factory=Part)
    maybe: Part | None = None
    several: list[Part] = field(default_factory=list)
    named: dict[str, Part] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)


def test_nested_dataclasses_are_built_in_lists_and_under_names():
    built = build(Whole, {"several": [{"size": 2}], "named": {"a": {"size": 3}, "b": {}}, "maybe": {"size": 4}})
    assert [part.size for part in built.several] == [2]
    assert {name: part.size for name, part in built.named.items()} == {"a": 3, "b": 1}
    assert built.maybe is not None
    assert built.maybe.size == 4


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"prt": {}}, "prt. Did you mean part?"),
        ({"part": {"sise": 1}}, "part.sise. Did you mean part.size?"),
        ({"several": [{}, {"sise": 1}]}, r"several\[1\].sise"),
        ({"named": {"a": {"sise": 1}}}, "named.a.sise"),
        ({"maybe": {"sise": 1}}, "maybe.sise"),
    ],
)
def test_an_unknown_key_is_named_with_its_place(tree, place):
    with pytest.raises(ConfigError, match=f"unknown key {place}"):
        build(Whole, tree)


def test_one_value_in_the_place_of_a_list_is_explained():
    with pytest.raises(ConfigError, match=r"tables: expected a list. On the command line: 'tables=\[VALUE\]'"):
        build(Whole, {"tables": "a.csv"})


def test_one_value_in_the_place_of_keys_is_explained():
    tree = {"arms": "dual"}
    with pytest.raises(
        ConfigError, match=r"arms: expected keys with values. On the command line: 'arms=\{KEY: VALUE\}'"
    ):
        build(pet_ct.Config, {"output": "run", "data": "sts", **tree})


def test_a_layer_alone_is_told_to_name_what_it_lies_on(tmp_path: Path):
    path = tmp_path / "layer.yaml"
    path.write_text("steps: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"layer.yaml: names no recipe. .*name that one first"):
        read_recipe([str(path)], [])


def test_what_is_built_from_one_schema_is_not_shared():
    first = build(Whole, {})
    first.tables.append("a.csv")
    assert build(Whole, {}).tables == []


def test_plain_is_what_it_was_built_from():
    tree = {"several": [{"size": 2}], "named": {"a": {"size": 3}}, "maybe": {"size": 4}, "tables": ["a.csv"]}
    assert plain(build(Whole, tree)) == {"part": {"size": 1}, **tree}
    assert plain(ReadPolicy(modalities=("CT", "PT")))["modalities"] == ["CT", "PT"], "lists alone, as YAML has them"

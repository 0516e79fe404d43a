import argparse

import pytest

from fmct.cli import main
from fmct.cli.training import add_arguments, words
from fmct.cli.words import parsed


@pytest.mark.parametrize(
    "line",
    [
        "a.yaml steps=2 --nproc 2 seed=1",
        "--nproc 2 a.yaml steps=2 seed=1",
        "a.yaml --nproc=2 steps=2 seed=1",
        "a.yaml steps=2 seed=1 --nproc 2",
    ],
)
def test_options_stand_anywhere_among_files_and_values(line: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    found = parsed(parser, line.split())
    assert (found.nproc, found.items) == (2, ["a.yaml", "steps=2", "seed=1"])
    assert words(found) == ["a.yaml", "steps=2", "seed=1"]


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_value_behind_an_option_is_read_like_one_before_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = "configs/pretrain/demo.yaml" if verb == "pretrain" else "configs/finetune/segment.yaml"
    assert main([verb, config, "output=x", "--allow-change", "seed", "stepz=3"]) == 2
    assert "stepz" in capsys.readouterr().err


def test_a_verb_with_verbs_of_its_own_keeps_their_order() -> None:
    parser = argparse.ArgumentParser()
    parser.add_subparsers(dest="what").add_parser("one").add_argument("--deep", type=int)
    assert parsed(parser, ["one", "--deep", "3"]).deep == 3

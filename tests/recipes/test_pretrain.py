"""The pretraining recipe end to end on tiny phantoms, in this process."""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fmct import cli
from fmct import config as configuration
from fmct.artefacts import write_json
from fmct.cli import training as verb
from fmct.data.corpus import chosen_stores
from fmct.data.masking import check_masking
from fmct.data.view_config import check_views
from fmct.errors import ArtefactError, ConfigError, WeightsError
from fmct.models.encoder import build_encoder
from fmct.store.reader import Store
from fmct.train import checkpoint
from fmct.train.schedule import Schedule
from fmct.train.session import Options
from tests.phantom_store import phantom_store

CPU = torch.device("cpu")
TINY = [
    "steps=4", "batch_size=2", "data.workers=0", "run.save_every=2", "run.measure_peak=false", "run.progress_s=1e9",
    "views.global_views.size=[16,16,16]", "views.local_views.size=[8,8,8]", "views.local_views.count=1",
    "encoder.embed_dim=24", "encoder.num_heads=2", "encoder.depth=2", "encoder.patch_size=[4,4,4]",
    "objective.dino_head={hidden_dim: 16, bottleneck_dim: 8, num_prototypes: 12}",
    "objective.ibot_head={hidden_dim: 16, bottleneck_dim: 8, num_prototypes: 12}",
    "objective.weights={dino: 1.0, ibot: 1.0, koleo: 0.1, pixel: 0.5}", "engine.kind=torch",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_store(tmp_path_factory.mktemp("phantoms"))


def tiny(store: Path, output: Path, *overrides: str) -> tuple[Any, Any]:
    """Return (recipe, configuration) of a run of seconds."""
    tree = configuration.read_tree(["pretrain/demo"], [*TINY, f"store={store}", f"output={output}", *overrides])
    recipe = configuration.import_recipe(tree["recipe"])
    return recipe, configuration.build(recipe.Config, tree)


def train(store: Path, output: Path, *overrides: str, **options: Any) -> Path:
    recipe, config = tiny(store, output, *overrides)
    assert recipe.main(config, Options(**options), CPU) == 0
    return output


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    return checkpoint.read(newest).parameters


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(store, tmp_path_factory.mktemp("runs") / "run")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_is_what_the_house_says(run: Path) -> None:
    lines = rows(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    named = {"loss", "loss/dino", "loss/ibot", "loss/koleo", "loss/pixel", "learning_rate", "momentum", "grad_norm"}
    assert named | {"teacher_temperature", "weight_decay", "rank_me"} <= set(lines[0])
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert (run / "config.yaml").read_text().startswith("format:")
    assert not (run / "run.lock").exists()
    assert len((run / "timing.jsonl").read_text().splitlines()) == 4


def test_the_same_command_again_has_nothing_to_do(store: Path, run: Path) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    train(store, run)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resume_is_bit_for_bit_with_any_number_of_workers(store: Path, run: Path, tmp_path: Path, workers: int) -> None:
    """Three series and two samples a step: the break lies inside the second epoch, which has an order of its own."""
    parts = tmp_path / "parts"
    train(store, parts, f"data.workers={workers}")
    kept = json.loads((parts / "checkpoints" / "step-000002" / "state.json").read_text())["state"]
    with Store.open(store) as opened:
        assert len(opened.entries) < kept["draw"] < 2 * len(opened.entries)
    for path in (parts / "checkpoints").glob("step-000004"):
        (path / "state.json").write_text("broken")
    train(store, parts, f"data.workers={workers}")
    assert (parts / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    left, right = weights(run), weights(parts)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_changed_configuration_is_refused(store: Path, run: Path, tmp_path: Path) -> None:
    recipe, config = tiny(store, run, "optim.clip=1.0")
    with pytest.raises(ConfigError, match=r"optim\.clip: 3\.0 → 1\.0"):
        recipe.main(config, Options(), CPU)


def test_the_batch_must_divide(store: Path, tmp_path: Path) -> None:
    recipe, config = tiny(store, tmp_path / "run", "batch_size=3", "engine.accumulate=2")
    with pytest.raises(ConfigError, match="multiple of 2"):
        recipe.main(config, Options(), CPU)


def test_two_names_for_the_stores_are_one_too_many(store: Path, tmp_path: Path) -> None:
    recipe, config = tiny(store, tmp_path, f"data.stores=[{{path: {store}}}]")
    with pytest.raises(ConfigError, match="Leave one out"):
        recipe.main(config, Options(), CPU)
    alone = replace(config, store="")
    assert [chosen.path for chosen in chosen_stores(alone.store, alone.data.stores)] == [str(store)]


def test_a_high_resolution_stage_starts_from_a_run(
    store: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = ("views.global_views.size=[24,24,24]", "steps=1")
    train(store, tmp_path / "stage", f"init={run}", *larger, "schedules.learning_rate.peak=0.0", "seed=5")
    text = capsys.readouterr().err
    assert "warm start from" in text
    assert "0 missing, 0 unexpected" in text
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    teacher = checkpoint.read(newest).task["teacher"]
    started = weights(tmp_path / "stage")
    for name, value in teacher.items():
        torch.testing.assert_close(started[name], value, msg=name)


def test_a_warm_start_that_does_not_fit_is_an_error(store: Path, run: Path, tmp_path: Path) -> None:
    recipe, config = tiny(store, tmp_path / "a", f"init={run}", "encoder.depth=1")
    with pytest.raises(WeightsError, match=r"unexpected encoder\.blocks\.1"):
        recipe.main(config, Options(), CPU)
    recipe, config = tiny(store, tmp_path / "b", f"init={tmp_path}")
    with pytest.raises(ArtefactError, match="neither an encoder folder"):
        recipe.main(config, Options(), CPU)
    train(store, tmp_path / "c", f"init={run}", "encoder.depth=1", "init_allow=[encoder.blocks.1.]", "steps=1")


def test_a_scheduled_weight_overrides_the_constant_one(store: Path, tmp_path: Path) -> None:
    overrides = ("objective.weights.pixel=0.0", "schedules.pixel={peak: 1.0, end: 0.0, kind: linear}", "steps=2")
    lines = rows(train(store, tmp_path / "run", *overrides))
    assert [line["weight/pixel"] for line in lines] == [1.0, 0.0]
    assert "loss/pixel" in lines[0]
    assert "loss/pixel" not in lines[1]


def test_probes_run_while_training(store: Path, tmp_path: Path) -> None:
    others = phantom_store(tmp_path, series=4, first_seed=10)
    output = train(store, tmp_path / "run", f"evaluate={{every: 3, store: {others}}}", "steps=3", "run.save_every=2")
    folder = output / "evaluations" / "step-000003"
    assert {"done", "probe-location.json", "probe-location.txt"} <= {path.name for path in folder.iterdir()}
    assert (output / "checkpoints" / "step-000003").is_dir()


def test_a_probe_that_cannot_be_made_costs_a_warning(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = train(store, tmp_path / "run", "evaluate={every: 1, labels: absent.csv, target: x}", "steps=1")
    assert "evaluation at step 1" in caplog.text
    assert (output / "evaluations" / "step-000001" / "done").is_file()
    assert len(rows(output)) == 1


def test_a_capture_is_replayed_by_the_command(store: Path, run: Path, tmp_path: Path, capsys: Any) -> None:
    capture = tmp_path / "step-000004"
    shutil.copytree(run / "checkpoints" / "step-000004", capture)
    facts = {"values": {"teacher_temperature": 0.07}, "step": 4, "draw": 8, "draws": [[[8, 9]]], "samples": [["a"]]}
    write_json(capture / "capture.json", "fmct-capture", "1.0", facts)
    recipe, config = tiny(store, tmp_path / "unused")
    assert recipe.main(config, Options(replay=str(capture)), CPU) == 0
    text = capsys.readouterr().out
    assert "pass 0: loss = " in text
    assert "@8" in text
    assert "NOT FINITE" not in text
    assert not (tmp_path / "unused").exists()


def test_mistakes_on_the_command_line_are_one_paragraph(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, said in (
        (["store=x"], "needs a config file"),
        (["pretrain/dema"], "Did you mean configs/pretrain/demo.yaml"),
        (["pretrain/demo", f"output={tmp_path}", "bach_size=3"], "Did you mean batch_size"),
        (["pretrain/demo", f"output={tmp_path}"], "no store named"),
    ):
        assert cli.main(["pretrain", *words]) == 2
        text = capsys.readouterr().err
        assert said in text
        assert "Traceback" not in text


def test_a_rank_gets_the_words_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    given = ["a.yaml", "x=1", "--fresh", "--allow-change", "optim", "--allow-change", "corpus", "--replay", "c"]
    assert verb.words(parser.parse_args([*given, "--nproc", "4"])) == given


SHIPPED = sorted(path.stem for path in (configuration.top_level("configs") / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_can_be_built(name: str, store: Path) -> None:
    """Views, masks, encoder and schedules are all checked, without memory for the weights."""
    tree = configuration.read_tree([f"pretrain/{name}"], [f"store={store}", "output=run"])
    recipe = configuration.import_recipe(tree["recipe"])
    config = configuration.build(recipe.Config, tree)
    check_views(config.views)
    check_masking(config.masking)
    with torch.device("meta"):
        encoder = build_encoder(config.encoder, config.views.channels)
    for views in (config.views.global_views, config.views.local_views):
        assert not views.count or encoder.num_patches(views.size) > 0
    schedules = {key: value for key, value in vars(config.schedules).items() if value is not None}
    values = Schedule(schedules, total=config.steps).at(config.steps - 1)
    assert 0 < values["momentum"] <= 1
    text = (configuration.top_level("configs") / "pretrain" / f"{name}.yaml").read_text()
    assert f"fmct pretrain configs/pretrain/{name}.yaml" in text, "the header gives the command"
    assert "Hardware" in text

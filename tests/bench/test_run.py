"""The quick path of every bench, once: a stamped JSON with the promised figures, naming no person or place."""

import dataclasses
import json
import os
import socket
import tempfile
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fmct.bench import ingest
from fmct.bench.figures import Figure
from fmct.bench.fresh import MeasurementFailed
from fmct.bench.run import BENCHES, FORMAT, run_benches, to_text
from fmct.bench.targets import TARGETS
from fmct.bench.workbench import QUICK
from fmct.cli import main
from fmct.errors import ConfigError
from tests import forked

SIZES = dataclasses.replace(
    QUICK,
    grids={"head": ((40, 96, 96), (4.0, 3.0, 3.0)), "chest": ((24, 64, 64), (4.0, 3.0, 3.0))},
    view_draws=1,
    store_samples=4,
    step_overrides=(
        *QUICK.step_overrides,
        "views.global_views.size=[48,48,48]",
        "views.local_views.size=[16,16,16]",
    ),
    products=(64, 128),
    loader_batches=1,
    starts=1,
)


def in_forked_process(function, *, threads, **arguments):
    """Stands for `in_fresh_process` where what is in memory before does not matter."""
    assert threads == 1
    return forked.call_each(measure, (function.__module__, function.__name__, json.dumps(arguments)))[0]


def measure(module, name, arguments):
    torch.set_num_threads(1)
    return json.loads(json.dumps(getattr(import_module(module), name)(**json.loads(arguments))))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:  # MONAI takes long to import; test_ingest.py has it
        patch.setattr(ingest.importlib.util, "find_spec", lambda name: None)
        for bench in ("step", "finetune", "contrast"):  # new processes: test_fresh.py, ingest, memory
            patch.setattr(f"fmct.bench.{bench}.in_fresh_process", in_forked_process)
        told = run_benches(["all"], quick=True, threads=1, output=str(path), sizes=SIZES)
    assert json.loads(path.read_text()) == json.loads(to_text(told)), "the file is what is returned"
    return told


@pytest.fixture(scope="module")
def figures(content):
    return {figure["name"]: figure for figure in content["figures"]}


def test_the_json_is_stamped_and_describes_the_machine(content):
    assert content["format"] == {"name": FORMAT[0], "version": FORMAT[1]}
    assert {"cpu", "cores", "threads", "torch", "load_average"} <= content["machine"].keys()
    assert content["machine"]["threads"] == 1
    assert content["quick"] is True
    assert content["data"] == "phantom"
    assert content["failed"] == []
    assert set(content["seconds"]) == set(BENCHES)
    assert len(content["load_averages"]) == len(BENCHES) + 1


def test_the_json_names_no_host_no_user_and_no_path(content):
    text = to_text(content)
    for word in (socket.gethostname(), tempfile.gettempdir() + "/", str(Path.home()) + "/", os.getcwd()):
        assert word not in text


def test_every_target_has_its_figure(figures):
    # The quick path has the small model only; test_ingest.py and test_predict.py have MONAI; rates are of a GPU.
    elsewhere = {"step/vit_base/share", "ingest/monai_ratio", "predict/chest/ratio"}
    on_a_gpu = {"step/fmhct_vit_base/rate", "contrast/rate"}
    assert set(TARGETS) - elsewhere - on_a_gpu <= set(figures)
    for name, figure in figures.items():
        assert (figure["target"] is not None) == (name in TARGETS)
        assert figure["value"] > 0 or name == "views/blur", name


def test_targets_are_held_only_against_what_they_speak_of(figures):
    for name in ("step/vit_small/share", "memory/ingest", "views/ratio"):
        assert figures[name]["met"] is None, f"{name}: --quick measures less than its target speaks of"
    for name in ("views/sample", "store/head/ratio", "gate/import", "phantoms/pair", "memory/loader_worker"):
        assert isinstance(figures[name]["met"], bool)


def test_parts_and_wholes_fit_together(figures):
    for part in ("head", "chest"):
        median, p95 = figures[f"store/{part}"], figures[f"store/{part}/p95"]
        assert p95["value"] >= median["value"]
        assert median["details"]["samples"] == SIZES.store_samples
        assert median["details"]["coarsest_level_to_view_spacing"] <= 1.0501
        assert figures[f"store/{part}/ratio"]["value"] == pytest.approx(median["of_floor"], rel=1e-3)
    views = figures["views/sample"]["details"]
    assert views["mb_moved"] > 4 * 3 * 96**3 * 4 / 1e6
    ratio, plain = figures["views/ratio"], figures["views/interpolate"]["details"]["times_ours"]
    least, most = (ratio["details"][name] for name in ("least", "most"))
    for value in (ratio["value"], 1 / plain):  # also that of the medians: every draw's times are this far apart
        assert least * 0.998 <= value <= most * 1.002
    stages = [figures[f"ingest/{stage}"]["value"] for stage in ("read", "hash", "pyramid", "write")]
    assert sum(stages) <= 1.05 * figures["ingest/whole"]["details"]["wall_s"] + 0.01
    assert not figures["gate/import"]["details"]["torch_imported"]
    assert not figures["gate/help"]["details"]["torch_imported"]


def test_a_step_is_taken_apart(figures):
    found = figures["step/vit_small/share"]["details"]
    assert sum(found["phases_share"].values()) == pytest.approx(1.0, abs=1e-2)
    assert found["tflop_per_second"] == pytest.approx(found["tflop_per_volume"] * found["volumes_per_second"], rel=1e-2)
    assert sum(found["profile"]["shares"].values()) == pytest.approx(1.0, abs=1e-2)
    assert found["profile"]["shares"]["products"] > 0
    assert "% of the best product" in found["profile"]["gap"]
    assert len(found["profile"]["operations"]) > 5


def test_fine_tuning_stands_beside_pretraining_of_the_same_run(figures):
    found, step = figures["finetune/vit_small/share"]["details"], figures["step/vit_small/share"]["details"]
    busy = step["share"] / (1 - step["data_wait"])
    assert figures["finetune/vit_small/ratio"]["value"] == pytest.approx(found["share"] / busy, rel=1e-2)
    assert found["tflop_per_volume"] < step["tflop_per_volume"], "no teacher, no local views, no heads"
    assert "% of the best product" in figures["finetune/vit_small/share"]["note"]


def test_memory_is_that_of_whole_processes(figures):
    ingest = figures["memory/ingest"]["details"]
    assert ingest["peak_mb"] >= ingest["before_mb"] > 1
    assert ingest["peak_mb"] - ingest["before_mb"] > ingest["int16_mb"], "the voxels themselves were held"
    loader = figures["memory/loader_worker"]
    assert len(loader["details"]["workers_mb"]) == 2
    assert 20 < loader["value"] < 600, "more than torch and a reader of crops"
    for name in ("kept", "checkpointed"):
        step = figures[f"memory/step/{name}"]
        assert step["value"] > step["floor"] > 100


def test_an_unknown_bench_is_refused_before_anything_runs(capsys):
    with pytest.raises(ConfigError, match=r"no bench 'speed'.*views"):
        run_benches(["views", "speed"], quick=True)
    with pytest.raises(ConfigError, match="folder does not exist"):
        run_benches(["gate"], output="no/such/folder/bench.json")
    assert capsys.readouterr().err == ""


def test_what_dies_does_not_take_the_rest_along(monkeypatch, capsys):
    def dies(_):
        raise MeasurementFailed("no memory")

    monkeypatch.setitem(BENCHES, "gate", dies)
    monkeypatch.setitem(BENCHES, "views", lambda bench: [Figure("views/sample", "views", 1.0, "ms")])
    assert main(["bench", "gate", "views", "--quick"]) == 1
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["failed"] == ["gate"]
    assert [figure["name"] for figure in told["figures"]] == ["views/sample"]
    assert "gate FAILED: no memory" in printed.err


def test_the_verb_prints_json_and_exits_0_whatever_came_out(capsys):
    assert main(["bench", "gate", "--quick"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["format"]["name"] == "fmct-bench"
    assert "import fmct" in printed.err

"""The SYNTHETIC grid of attention-guided slabs: every arm runs, what is there is kept, and the table is right."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fmct.artefacts import read_json
from fmct.config import build, import_recipe, read_tree
from fmct.errors import ConfigError, DataError
from fmct.experiment.attention_pe import peak_distance
from fmct.experiment.attention_pe_table import write_attention_table
from fmct.metrics.contrasts import Contrast
from fmct.metrics.delong import auroc, paired_delong
from fmct.train.session import Options

ARMS = ["slabs", "slabs-attention", "series", "series-attention"]


def grid(folder: Path, *words: str) -> int:
    small = folder / "small.yaml"
    small.write_text(
        "steps: 2\nbatch_size: 4\nslabs: {size: [5, 48, 48], spacing_mm: [5.0, 6.0, 6.0]}\n"
        "network: {layers: [1, 1, 1, 1], channels: [8, 8, 8, 8]}\nreader: {reduce: 4, hidden: 4}\n"
    )
    tree = read_tree(
        ["finetune/attention_pe_phantom.yaml"],
        [
            f"output={folder / 'runs'}", f"cell=[finetune/attention_pe_phantom_cell,{small}]", "seeds=[0]",
            "phantoms={counts: [2, 2, 4], shape: [26, 56, 56], spacing_mm: [5.0, 6.0, 6.0], workers: 1}", *words,
        ],
    )  # fmt: skip
    module = import_recipe(tree["recipe"])
    return module.main(build(module.Config, tree), Options(), torch.device("cpu"))


def test_every_arm_runs_and_what_is_there_is_kept(tmp_path: Path) -> None:
    assert grid(tmp_path) == 0
    cells = sorted((tmp_path / "runs" / "cells").glob("*.json"))
    assert [path.stem for path in cells] == sorted(f"{arm}-n0-fold0-seed0" for arm in ARMS)
    found = {path.stem.partition("-n0")[0]: read_json(path, "fmct-experiment-cell", "1.0") for path in cells}
    for arm, cell in found.items():
        assert len(cell["scores"]["logit"]) == 4
        assert sorted(cell["scores"]["label"].values()) == [0, 0, 1, 1]
        assert ("hit" in cell["scores"]) == arm.startswith("slabs")
    text = (tmp_path / "runs" / "results.md").read_text()
    assert text.startswith("# SYNTHETIC")
    assert "series-attention − slabs-attention" in text
    before = [path.stat().st_mtime_ns for path in cells]
    assert grid(tmp_path) == 0
    assert [path.stat().st_mtime_ns for path in cells] == before


def test_a_series_arm_needs_its_slabs_arm_before_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no slabs arm"):
        grid(tmp_path, "arms.series.start=nothing")
    with pytest.raises(DataError, match="no arm other"):
        grid(tmp_path, "contrasts=[slabs - other]")


def test_the_table_pairs_patients_and_averages_seeds(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = {f"p{n}": float(n % 2) for n in range(20)}
    logits = {
        arm: [{p: float(v + random.normal()) for p, v in labels.items()} for _ in range(2)]
        for arm in ("slabs", "series")
    }
    cells = [
        {"arm": arm, "size": 0, "fold": 0, "seed": seed, "seconds": 1.0, "scores": {"logit": one, "label": labels}}
        for arm, seeds in logits.items()
        for seed, one in enumerate(seeds)
    ]
    contrast = Contrast("series", "slabs")
    write_attention_table(tmp_path, cells, [contrast], left=0)
    tree = read_json(tmp_path / "results.json", "fmct-experiment", "1.0")
    truth, patients = np.array([labels[p] for p in sorted(labels)]), sorted(labels)

    def ranked(one: dict[str, float]) -> float:
        return auroc(np.array([one[p] for p in patients]), truth, patients).value

    means = {arm: np.mean([ranked(one) for one in seeds]) for arm, seeds in logits.items()}
    assert tree["auroc"]["slabs"]["estimate"] == pytest.approx(means["slabs"])
    difference = tree["contrasts"][0]["difference"]
    assert difference["estimate"] == pytest.approx(means["series"] - means["slabs"])
    assert difference["low"] < difference["estimate"] < difference["high"]
    assert tree["contrasts"][0]["p"] == tree["contrasts"][0]["p_holm"]
    single = write_attention_table(tmp_path, [c for c in cells if c["seed"] == 0], [contrast], left=2)
    first, second = (
        auroc(np.array([logits[arm][0][p] for p in patients]), truth, patients) for arm in ("series", "slabs")
    )
    assert f"{paired_delong(first, second).interval}" in single
    unequal = write_attention_table(tmp_path, cells[:3], [contrast], left=1)
    assert "| series − slabs |" not in unequal  # not the same seeds yet


def test_the_peak_is_measured_in_mm() -> None:
    attention, mask = np.zeros((4, 4, 4)), np.zeros((4, 4, 4), dtype=bool)
    attention[0, 0, 3] = 1
    mask[2, 0, 0] = True
    assert peak_distance(attention, mask, (5.0, 1.0, 2.0)) == pytest.approx(np.hypot(10, 6))
    assert peak_distance(attention, ~mask & False, (1.0, 1.0, 1.0)) == float("inf")

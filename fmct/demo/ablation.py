"""What each part of the joint objective is worth: the demo's encoder trained by each alone, at equal minutes.

Every arm gets as many updates as fit into the same time on this machine, measured first; seeds are averaged within a
patient before any interval. Cells that are there are not trained again, so that a table can be spread over days.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fmct.artefacts import read_json, write_json, write_text
from fmct.data.mask_files import match_masks
from fmct.demo.results import read_rows
from fmct.demo.run import CONFIG
from fmct.errors import ConfigError
from fmct.probes.cohort import Cohort, Fold
from fmct.probes.comparison import Row, compare_patients, random_encoder, signed
from fmct.probes.dense import DenseTokens, draw_tokens, hu_statistics
from fmct.probes.dense_cases import dense_cases
from fmct.probes.masks import encoded, score_folds
from fmct.publish import PublishedEncoder, load_encoder
from fmct.publish.export import export
from fmct.samples import corpus
from fmct.store.progress import reporter
from fmct.store.reader import Store
from fmct.train.run import load_config

FORMAT = ("fmct-demo-ablation", "1.0")
PACE_STEPS = 16
RANDOM_SEEDS = (0, 1, 2)
_FOLDS = 3


def _weights(**weights: float) -> tuple[str, ...]:
    given = {"dino": 0.0, "ibot": 0.0, "koleo": 0.0, "pixel": 0.0, **weights}
    return tuple(f"objective.weights.{name}={value}" for name, value in given.items())


ARMS: Mapping[str, tuple[str, ...]] = {
    "joint": (),  # the demo's own configuration
    "DINO": _weights(dino=1.0, koleo=0.1),
    "iBOT": _weights(ibot=1.0),
    "pixel MIM": (*_weights(pixel=1.0), "objective.pixel.histogram=0"),
    "pixel MIM + histograms": _weights(pixel=1.0),
}


@dataclass(frozen=True)
class AblationOptions:
    """What the command line says. held_out: score the twelve patients; else, for tuning, the others in three folds.

    steps: updates of every arm, 0 for as many as fit into `minutes`. train(words) runs `fmct pretrain`. overrides:
    key=value for every arm.
    """

    output: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float
    steps: int
    held_out: bool
    overrides: tuple[str, ...]
    train: Callable[[list[str]], int]


def run_ablation(options: AblationOptions) -> str:
    """Train and score every cell that is missing, write OUTPUT/ablation.json and .txt, and return the table."""
    unknown = [arm for arm in options.arms if arm not in ARMS]
    if unknown or not options.seeds or options.minutes <= 0 or options.steps < 0:
        raise ConfigError(f"ablation: arms are {', '.join(ARMS)}; give at least one seed and a positive time.")
    store_path = options.output / "store"
    corpus.make_store(store_path, progress=reporter(5.0))
    with Store.open(store_path) as store:
        cells = {arm: [_cell(options, arm, seed, store) for seed in options.seeds] for arm in options.arms}
        table = _table(options, cells, store)
    return table


def steps_in(minutes: float, volumes_per_second: Sequence[float], batch_size: int) -> int:
    """Return how many updates fit into `minutes` at the median rate of the updates after the first quarter."""
    settled = volumes_per_second[len(volumes_per_second) // 4 :]
    return max(1, round(minutes * 60 * median(settled) / batch_size))


def _cell(options: AblationOptions, arm: str, seed: int, store: Store) -> dict[str, Any]:
    """Return {patient: AUROC} and the cost of one arm and seed, trained now unless its file is there."""
    budget = f"{options.steps}steps" if options.steps else f"{options.minutes:g}min"
    name = f"{arm.replace(' ', '-')}-{budget}-{seed}"
    file = options.output / "cells" / f"{name}{'' if options.held_out else '-development'}.json"
    if file.is_file():
        return read_json(file, *FORMAT)
    words = [CONFIG, f"store={store.path}", *ARMS[arm], *options.overrides]
    steps = _steps(options, arm, words)
    run = options.output / "runs" / name
    print(f"\n== {arm}, seed {seed}: {steps} updates", flush=True)
    _train(options, [*words, f"seed={seed}", f"steps={steps}", f"output={run}"])
    encoder = load_encoder(export(run, run.with_name(f"{name}-encoder"), overwrite=True))
    tokens, cohort = _probe_data(encoder, store, held_out=options.held_out)
    auroc = score_folds(encoded(encoder, tokens), tokens, cohort).auroc
    rate = median(row["volumes_per_second"] for row in read_rows(run / "timing.jsonl"))
    cell = {"arm": arm, "seed": seed, "steps": steps, "volumes_per_second": rate, "auroc": auroc}
    cell["encoder"] = str(encoder.folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, *FORMAT, cell)
    return cell


def _steps(options: AblationOptions, arm: str, words: Sequence[str]) -> int:
    """Return the arm's number of updates: what fits into the minutes, measured once and kept for all its seeds."""
    if options.steps:
        return options.steps
    file = options.output / "pace" / f"{arm.replace(' ', '-')}-{options.minutes:g}min.json"
    if not file.is_file():
        run = options.output / "pace" / arm.replace(" ", "-")
        _train(options, [*words, f"steps={PACE_STEPS}", "run.measure_peak=false", f"output={run}"], fresh=True)
        rates = [row["volumes_per_second"] for row in read_rows(run / "timing.jsonl")]
        write_json(file, *FORMAT, {"steps": steps_in(options.minutes, rates, int(load_config(run)["batch_size"]))})
    return int(read_json(file, *FORMAT)["steps"])


def _budget(options: AblationOptions) -> str:
    return f"{options.steps} updates" if options.steps else f"{options.minutes:g} minutes"


def _train(options: AblationOptions, words: list[str], *, fresh: bool = False) -> None:
    code = options.train([*words, *(["--fresh"] if fresh else [])])
    if code:
        raise ConfigError(f"pretraining ended with exit code {code}; its messages stand above.")


def _probe_data(encoder: PublishedEncoder, store: Store, *, held_out: bool) -> tuple[dict[str, DenseTokens], Cohort]:
    """Return the probe's tokens and folds: the twelve after a fit on the others, or the others in three folds."""
    masks = match_masks(store, corpus.MASKS)
    entries = [entry for entry in store.entries if entry.id in masks]
    held = set(corpus.held_out_patients())
    if not held_out:
        entries = [entry for entry in entries if entry.patient not in held]
    cases = dense_cases(store, entries, masks, encoder.preprocessing)
    size = encoder.preprocessing.input.size_voxels
    tokens = draw_tokens(cases, size=size, patch=encoder.model.patch_size, positions=12)
    patients = sorted(tokens)
    if held_out:
        parts = [[patient for patient in patients if patient in held]]
    else:
        parts = [patients[number::_FOLDS] for number in range(_FOLDS)]
    folds = [Fold(tuple(p for p in patients if p not in part), tuple(part)) for part in parts]
    return tokens, Cohort(tuple(folds))


def _table(options: AblationOptions, cells: Mapping[str, Sequence[Mapping[str, Any]]], store: Store) -> str:
    """Return the table of all arms, and write it beside its numbers."""
    first = next(iter(cells))
    encoder = load_encoder(cells[first][0]["encoder"])
    tokens, cohort = _probe_data(encoder, store, held_out=options.held_out)
    random = [score_folds(encoded(random_encoder(encoder, s), tokens), tokens, cohort).auroc for s in RANDOM_SEEDS]
    plain = {"HU statistics of the token": score_folds(hu_statistics(tokens), tokens, cohort).auroc}
    lines, found = [], {}
    rows: list[Row] = []
    for arm, seeds in cells.items():
        rows, _ = compare_patients([cell["auroc"] for cell in seeds], random, plain)
        gain = rows[1].gain
        assert gain is not None
        found[arm] = {"score": rows[0].score.to_dict(), "gain": gain.to_dict(), "cells": list(seeds)}
        lines.append(f"| {arm} | {seeds[0]['steps']} | {rows[0].score} | {signed(gain)} |")
    baselines = [f"| {row.name} | – | {row.score} | |" for row in rows[1:]]
    who = "the twelve held-out patients" if options.held_out else "the other patients, three folds (for tuning)"
    head = [
        f"AUROC of the dense probe on {who}; {_budget(options)} an arm, seeds "
        f"{', '.join(map(str, options.seeds))} averaged within a patient; 95 % t intervals over patients.",
        "",
        "| objective | updates | AUROC | minus random initialisation |",
        "|---|---|---|---|",
    ]
    table = "\n".join([*head, *lines, *baselines])
    write_json(options.output / "ablation.json", *FORMAT, {"budget": _budget(options), "arms": found})
    write_text(options.output / "ablation.txt", f"{table}\n")
    return table

"""What a run folder says of itself, for the card: configuration, corpus, last step, time, alarms."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmct.artefacts import read_json, write_json
from fmct.config import build
from fmct.data.corpus import fingerprints
from fmct.data.sampler import StoreConfig, select
from fmct.errors import ArtefactError, FmctError
from fmct.publish.facts import StoredSeries, code_commit, corpus_facts, hardware, versions, without_machine
from fmct.store import Store
from fmct.train.checkpoint import MANIFEST
from fmct.train.log import EVENTS, METRICS, TIMING
from fmct.train.run import CONFIG, CORPUS

ENVIRONMENT = "environment.json"
SERIES = ("training_series.json", "fmct-training-series", "1.0")
log = logging.getLogger(__name__)


def write_environment(run: Path) -> None:
    """Write RUN/environment.json, which export puts in the card: hardware, versions and commit of the training job."""
    facts = {"hardware": hardware(), "versions": versions(), "commit": code_commit()}
    write_json(run / ENVIRONMENT, "fmct-environment", "1.0", facts)


def write_series(run: Path, entries: Iterable[StoredSeries]) -> None:
    """Write RUN/training_series.json for the card: counts and hashes of exactly the series that a run learns from."""
    name, kind, version = SERIES
    write_json(run / name, kind, version, corpus_facts(entries))


def run_facts(
    run: Path,
    tree: Mapping[str, Any],
    checkpoint: Path,
    state: Mapping[str, Any],
    *,
    source: str,
    corpus: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the training facts of a run at a checkpoint; `tree` is its configuration, `state` the checkpoint's.

    Nothing in them names a path, a person or a host.
    """
    step = int(state["step"])
    rows = _rows(run / METRICS, step)
    manifest = read_json(checkpoint / MANIFEST, "fmct-checkpoint", "1.0")
    environment = {"versions": {key: manifest[key] for key in ("fmct", "torch") if key in manifest}}
    if (run / ENVIRONMENT).is_file():
        environment = read_json(run / ENVIRONMENT, "fmct-environment", "1.0")
    return {
        "run": hashlib.sha256((run / CONFIG).read_bytes()).hexdigest(),
        "source": source,
        "step": step,
        "steps_planned": _first(tree, ("steps", "until", "max_steps")),
        "recipe": tree.get("recipe"),
        "seed": tree.get("seed"),
        "batch_size": state.get("batch_size"),
        "processes": manifest.get("world_size"),
        "objective": _named(tree, "weights"),
        "volumes_seen": state.get("draw"),
        "skipped_updates": state.get("skipped"),
        "wall_time_s": round(sum(row.get("seconds") or 0.0 for row in _rows(run / TIMING, step)), 1),
        "final": rows[-1] if rows else {},
        "alarms": [row["alarm"] for row in _rows(run / EVENTS, step) if row.get("event") == "alarm"],
        "corpus": corpus,
        **environment,
        "configuration": without_machine(dict(tree)),
    }


def run_corpus(run: Path, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return counts and content hashes of the series that the run drew from; without its stores, their fingerprints."""
    if (run / SERIES[0]).is_file():
        return read_json(run / SERIES[0], SERIES[1], SERIES[2])
    recorded = read_json(run / CORPUS, "fmct-corpus", "1.0")["stores"] if (run / CORPUS).is_file() else {}
    entries = []
    for settings in _stores(tree) or [{"path": path} for path in recorded]:
        try:
            config = build(StoreConfig, dict(settings), "the run's data.stores")
            if config.path in recorded and fingerprints([config])[config.path] != recorded[config.path]:
                raise ArtefactError("its content changed since the run")
            with Store.open(config.path) as store:
                entries += select(store, config)
        except (FmctError, OSError) as error:
            log.warning(
                "a store of the run cannot be read (%s): the card gets its fingerprint, not its voxel hashes", error
            )
            return {"store_fingerprints": sorted(recorded.values())}
    return corpus_facts(entries) if entries else {}


def _stores(tree: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    for branch in (tree.get("data"), tree):
        stores = branch.get("stores") if isinstance(branch, Mapping) else None
        if stores:
            return [dict(item) for item in stores]
    return [{"path": tree["store"]}] if tree.get("store") else []


def _rows(path: Path, until: int) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file up to a step, a cut last line left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row.get("step", 0) <= until:
                rows.append(row)
    return rows


def _first(tree: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((tree[name] for name in names if tree.get(name) is not None), None)


def _named(tree: Mapping[str, Any], name: str) -> Any:
    """Return the first mapping called `name`, wherever it is in the tree."""
    if isinstance(tree.get(name), Mapping):
        return tree[name]
    for value in tree.values():
        found = _named(value, name) if isinstance(value, Mapping) else None
        if found is not None:
            return found
    return None

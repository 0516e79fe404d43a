"""Training on from a run or model of the published contrast system, as its chest networks began from head-neck ones."""

from pathlib import Path
from typing import Any

from fmct.artefacts import read_json
from fmct.config import plain
from fmct.data.cohort import Cohort, refuse_overlap
from fmct.errors import ArtefactError, ConfigError
from fmct.models.slice_networks import SliceNetworkConfig
from fmct.publish import layout
from fmct.publish.load_model import MODEL_FORMAT
from fmct.publish.run_facts import run_corpus
from fmct.publish.task_record import is_downstream_run, read_task
from fmct.publish.weights import load_into, read_weights
from fmct.tasks.contrast_paper import ContrastPaper
from fmct.train import checkpoint
from fmct.train.engine import Engine
from fmct.train.run import load_config

KIND = "contrast_paper"


def load_start(source: str, task: ContrastPaper, network: SliceNetworkConfig) -> str:
    """Load the kept network of a run or model folder into a task, and return a line for the log.

    The template is not taken over: another body part has another one. Raises ConfigError for a network of another
    description, ArtefactError for a folder that is none of this recipe's, WeightsError where tensors do not fit.
    """
    folder = Path(source)
    architecture = _architecture(folder)
    mine, theirs = plain(network) | {"weights": ""}, dict(architecture["network"])
    differ = sorted(key for key in mine if mine[key] != theirs.get(key))
    if differ:
        changes = ", ".join(f"{key} ({theirs.get(key)} → {mine[key]})" for key in differ)
        raise ConfigError(
            f"start={source}: its network differs in {changes}. "
            "Training goes on with the same network: give this run the other's `network` (and legacy.input_scale)."
        )
    if is_downstream_run(folder):
        found = _newest(folder)
        tensors = read_weights(found / checkpoint.PARAMETERS)
        kept = "best." if any(name.startswith("best.") for name in tensors) else "network."
        where = f"{found.name}, its {'best' if kept == 'best.' else 'last'} weights"
    else:
        layout.verify(folder)
        tensors, kept, where = read_weights(folder / layout.WEIGHTS), "network.", "its exported weights"
    state = {name.removeprefix(kept): value for name, value in tensors.items() if name.startswith(kept)}
    report = load_into(task.network, state, where=f"start={source}")
    if task.best is not None:
        task.best.load_state_dict(task.network.state_dict())
    return f"network of {folder.name} ({where}): {report}"


def begin_optimizer(source: str, engine: Engine) -> str:
    """Give an engine the Adam moments of a run's newest checkpoint, and return a line for the log.

    Raises ConfigError for a model folder, which has none.
    """
    folder = Path(source)
    if not is_downstream_run(folder):
        raise ConfigError(f"start_optimizer: {source} is a model folder, which holds no optimiser. Name a run's.")
    found = checkpoint.read(_newest(folder))
    parameters = {name: value.detach() for name, value in engine.task.state_dict().items()}
    engine.load(parameters, found.moments, int(found.state["updates"]))
    return f"Adam's moments after {found.state['updates']} updates of {folder.name}"


def overlap_notes(source: str, cohort: Cohort, on_overlap: str, split: str) -> list[str]:
    """Return notes about test patients that the earlier run learned from. Raises DataError as `refuse_overlap` does."""
    folder = Path(source)
    if is_downstream_run(folder):
        corpus: Any = run_corpus(folder, load_config(folder))
    else:
        corpus = read_json(folder / layout.CONFIG, *MODEL_FORMAT).get("training", {}).get("corpus")
    return refuse_overlap(cohort, {"corpus": corpus}, on_overlap=on_overlap, split=split)


def _architecture(folder: Path) -> dict[str, Any]:
    if is_downstream_run(folder):
        record = read_task(folder)
        kind, architecture = record.kind, dict(record.architecture)
    elif (folder / layout.CONFIG).is_file():
        task = read_json(folder / layout.CONFIG, *MODEL_FORMAT).get("task", {})
        kind, architecture = task.get("kind"), dict(task.get("architecture", {}))
    else:
        raise ArtefactError(f"start={folder}: neither a run folder (task.json) nor a model folder (config.json).")
    if kind != KIND:
        raise ArtefactError(f"start={folder}: is of the kind {kind!r}; training goes on from a {KIND} run or model.")
    return architecture


def _newest(folder: Path) -> Path:
    found = checkpoint.newest(folder / "checkpoints")
    if found is None:
        raise ArtefactError(f"start={folder}: a run folder without a checkpoint that verifies.")
    return found

"""Checkpoints that are committed, not written: a folder appears under its final name whole and verified, or not at all.

`checkpoints/step-000120/` holds `parameters.safetensors` (the task's state dict), `moments.safetensors` (AdamW's,
`exp_avg/NAME` and `exp_avg_sq/NAME`), `task.safetensors` (tensors of the task's run state, keys joined with '/'),
`state.json` (step, draw, updates… and the rest of the run state) and `manifest.json` with the size and SHA-256 of each.
Nothing in it depends on the number of processes. It is built in a sibling `step-000120.tmp-PID`, every file flushed to
disk; then the ranks meet, the manifest is written and verified, the folder renamed, its parent flushed. Resuming takes
the newest folder that verifies, whatever else lies beside it.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmct import __version__, distributed
from fmct.artefacts import fsync_directory, read_json, sha256_of, write_json
from fmct.errors import ArtefactError, CheckpointError
from fmct.train.engine import Engine

PARAMETERS, MOMENTS, TASK, STATE = "parameters.safetensors", "moments.safetensors", "task.safetensors", "state.json"
MANIFEST = "manifest.json"
FILES = (PARAMETERS, MOMENTS, TASK, STATE)
NAME = re.compile(r"step-(\d{6,})")
log = logging.getLogger(__name__)


class SaveFailed(CheckpointError):
    """A checkpoint could not be written; what was there before is untouched."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the `last` newest (at least 2) and, with every > 0, each whose step divides by it."""

    last: int = 3
    every: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint, tensors on the CPU. state: JSON values; task: the run state as the task gave it."""

    parameters: dict[str, Tensor]
    moments: dict[str, Tensor]
    task: dict[str, Any]
    state: dict[str, Any]


def folder_name(step: int) -> str:
    """Return the folder name of a step."""
    return f"step-{step:06d}"


def save(parent: Path, engine: Engine, state: Mapping[str, Any], *, name: str | None = None) -> Path:
    """Commit a checkpoint of the engine, its task and `state` (JSON values, with `step`) under `parent`; return it.

    Collective: every rank calls it. Raises SaveFailed on every rank when rank 0 cannot write, for instance on a full
    disk; the temporary folder is then gone and older checkpoints are as they were. A folder that already has the name
    is kept when it verifies: the same step of the same run is the same state.
    """
    moments = engine.moments()  # collective under ZeRO
    final = parent / (name or folder_name(int(state["step"])))
    failure = ""
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    if distributed.rank() == 0:
        try:
            _write(temporary, engine, moments, state)
        except (OSError, SafetensorError, ValueError, CheckpointError) as error:
            failure = str(error) or type(error).__name__
    failure = _agree(failure)
    if not failure and distributed.rank() == 0:
        try:
            _commit(temporary, final)
        except (OSError, ArtefactError) as error:
            failure = str(error) or type(error).__name__
    failure = _agree(failure)
    if failure:
        if distributed.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise SaveFailed(f"{final}: the checkpoint could not be written ({failure}). Older checkpoints are untouched.")
    return final


def verify(folder: Path) -> None:
    """Raise CheckpointError unless the folder has a manifest and every file has the size and hash it states."""
    try:
        manifest = read_json(folder / MANIFEST, "fmct-checkpoint", "1.0")
    except ArtefactError as error:
        raise CheckpointError(str(error)) from None
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, though the manifest names it.")
        if path.stat().st_size != facts["bytes"]:
            raise CheckpointError(
                f"{path}: {path.stat().st_size} bytes, the manifest says {facts['bytes']}: cut short."
            )
        if sha256_of(path) != facts["sha256"]:
            raise CheckpointError(f"{path}: its SHA-256 is not the manifest's: altered.")


def newest(parent: Path) -> Path | None:
    """Return the newest checkpoint that verifies, or None; logs each that it passes over, and why."""
    for step, folder in sorted(_folders(parent), reverse=True):
        try:
            verify(folder)
        except CheckpointError as error:
            log.warning("checkpoint of step %d is passed over: %s", step, error)
            continue
        return folder
    return None


def read(folder: Path) -> Checkpoint:
    """Return a verified checkpoint's contents. Raises CheckpointError when it does not verify."""
    verify(folder)
    content = read_json(folder / STATE, "fmct-state", "1.0")
    task = _nest({**load_file(folder / TASK), **content["task"]})
    return Checkpoint(load_file(folder / PARAMETERS), load_file(folder / MOMENTS), task, content["state"])


def restore(engine: Engine, folder: Path) -> dict[str, Any]:
    """Load a checkpoint into the engine and its task, and return its `state`."""
    found = read(folder)
    engine.load(found.parameters, found.moments, int(found.state["updates"]))
    engine.task.load_run_state(found.task)
    return found.state


def retain(parent: Path, retention: Retention) -> None:
    """Remove checkpoints that the retention does not name, and temporary folders. Never leaves fewer than two.

    Each is renamed to `.trash-…` first, so that a kill half way leaves nothing that looks like a checkpoint.
    """
    folders = sorted(_folders(parent))
    last = max(2, retention.last)
    for step, folder in folders[: max(0, len(folders) - last)]:
        if not retention.every or step % retention.every:
            folder.rename(folder.with_name(f".trash-{folder.name}"))
    sweep(parent)


def sweep(parent: Path) -> None:
    """Remove what an interrupted save or removal left behind."""
    if parent.is_dir():
        for path in parent.iterdir():
            if path.name.startswith(".trash-") or ".tmp-" in path.name:
                shutil.rmtree(path, ignore_errors=True)


def _folders(parent: Path) -> list[tuple[int, Path]]:
    if not parent.is_dir():
        return []
    matches = [(NAME.fullmatch(path.name), path) for path in parent.iterdir() if path.is_dir()]
    return [(int(match.group(1)), path) for match, path in matches if match]


def _write(temporary: Path, engine: Engine, moments: dict[str, Tensor], state: Mapping[str, Any]) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    parameters = {name: _detached(tensor) for name, tensor in engine.task.state_dict().items()}
    tensors, values = _flatten(engine.task.run_state())
    for name, content in ((PARAMETERS, parameters), (MOMENTS, moments), (TASK, tensors)):
        broken = [key for key, tensor in content.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise CheckpointError(f"{name}: {', '.join(broken[:3])} hold non-finite values; such a state is not saved.")
        save_file(content, temporary / name)
        with open(temporary / name, "rb+") as file:
            os.fsync(file.fileno())
    write_json(temporary / STATE, "fmct-state", "1.0", {"state": dict(state), "task": values})


def _commit(temporary: Path, final: Path) -> None:
    """Write and verify the manifest, then give the folder its name."""
    files = {
        name: {"bytes": (temporary / name).stat().st_size, "sha256": sha256_of(temporary / name)} for name in FILES
    }
    facts = {"fmct": __version__, "torch": torch.__version__, "world_size": distributed.world_size(), "files": files}
    write_json(temporary / MANIFEST, "fmct-checkpoint", "1.0", facts)
    verify(temporary)
    if final.is_dir():
        if _verifies(final):
            shutil.rmtree(temporary)
            return
        final.rename(final.with_name(f".trash-{final.name}-{os.getpid()}"))
    temporary.rename(final)
    fsync_directory(final.parent)


def _verifies(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def _agree(failure: str) -> str:
    """Return rank 0's word on every rank; also the barrier between writing and committing."""
    return str(distributed.gather_objects(failure)[0])


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, JSON values) of nested dicts, keys joined with '/'."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            inner_tensors, inner_values = _flatten(value, f"{prefix}{key}/")
            tensors.update(inner_tensors)
            values.update(inner_values)
        elif isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = _detached(value)
        else:
            json.dumps(value, allow_nan=False)  # an empty dict too is a value, so that it comes back
            values[f"{prefix}{key}"] = value
    return tensors, values


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return tree

"""Is this run sane: how far it is, whether it learns, and whether it can be resumed."""

import json
import math
from pathlib import Path
from typing import Any

from fmct.errors import ArtefactError, CheckpointError
from fmct.inspection.findings import Findings
from fmct.train import checkpoint
from fmct.train.log import EVENTS, METRICS, TIMING
from fmct.train.run import CONFIG, LOCK, load_config

_PLAIN = {"step", "loss", "learning_rate", "grad_norm", "skipped"}


def is_run(path: Path) -> bool:
    """Return whether `path` looks like a run folder, whole or not."""
    return (path / CONFIG).is_file() and any((path / name).exists() for name in (METRICS, "checkpoints", "corpus.json"))


def inspect_run(path: Path) -> Findings:
    """Return the findings on a run folder; every file of its newest checkpoint is read and verified."""
    findings = Findings("run")
    try:
        tree = load_config(path)
    except ArtefactError as error:
        findings.faults.append(str(error))
        tree = {}
    rows, broken = _read(path / METRICS)
    timing, _ = _read(path / TIMING)
    events, _ = _read(path / EVENTS)
    planned = next((tree[key] for key in ("steps", "until", "max_steps") if tree.get(key)), None)
    last = rows[-1] if rows else {}
    findings.facts = {
        "recipe": tree.get("recipe"),
        "step": last.get("step", 0),
        "steps_planned": planned,
        "loss": {"first": rows[0].get("loss"), "last": last.get("loss")} if rows else None,
        "health": {key: value for key, value in last.items() if key not in _PLAIN},
        "skipped_updates": last.get("skipped"),
        "alarms": [row.get("alarm") for row in events if row.get("event") == "alarm"],
        "hours": round(sum(row.get("seconds") or 0 for row in timing) / 3600, 3),
        "volumes_per_second": timing[-1].get("volumes_per_second") if timing else None,
        "held_by_a_job": (path / LOCK).exists(),
    }
    _check_metrics(rows, broken, findings)
    _check_checkpoints(path, findings)
    return findings


def _check_metrics(rows: list[dict[str, Any]], broken: int, findings: Findings) -> None:
    if broken:
        findings.notes.append(f"{broken} lines of {METRICS} are cut short; a resume removes them")
    if not rows:
        findings.notes.append(f"no step is in {METRICS} yet")
    steps = [row.get("step") for row in rows]
    if steps != list(range(1, len(steps) + 1)):
        findings.faults.append(f"{METRICS} does not hold each step once, from 1 on: the file was altered.")
    loss = rows[-1].get("loss", 0.0) if rows else 0.0
    if loss is None or not math.isfinite(loss):
        findings.faults.append("the last loss is not finite.")
    for alarm in dict.fromkeys(findings.facts["alarms"]):
        findings.faults.append(f"alarm: {alarm}")


def _check_checkpoints(path: Path, findings: Findings) -> None:
    parent = path / "checkpoints"
    folders = [p for p in parent.iterdir() if checkpoint.NAME.fullmatch(p.name)] if parent.is_dir() else []
    good = None
    for folder in sorted(folders, key=lambda p: int(p.name.removeprefix("step-")), reverse=True):
        try:
            checkpoint.verify(folder)
        except CheckpointError as error:
            findings.faults.append(f"a checkpoint does not verify: {error}")
            continue
        good = int(folder.name.removeprefix("step-"))
        break
    findings.facts["checkpoints"] = len(folders)
    findings.facts["last_checkpoint_verified"] = good
    findings.facts["resumable"] = good is not None
    if good is None and findings.facts["step"]:
        findings.notes.append("no checkpoint verifies: the same command would begin at step 0")


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return (objects, lines that are none) of a JSON-lines file."""
    rows, broken = [], 0
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(dict(json.loads(line)))
            except (json.JSONDecodeError, TypeError, ValueError):
                broken += 1
    return rows, broken

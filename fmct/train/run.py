"""The run folder: who may write in it, what configuration it belongs to, and where in it training goes on."""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fmct import config as configuration
from fmct.artefacts import write_json, write_text
from fmct.errors import ArtefactError, ConfigError
from fmct.train import checkpoint
from fmct.train.log import METRICS, truncate_after

CONFIG, LOCK, CORPUS = "config.yaml", "run.lock", "corpus.json"
STALE_AFTER_S = 600.0


class RunLock:
    """Holds a run folder for one job: a file with host, process and start time, touched while training goes on.

    A lock whose process is gone on this host, or which was not touched for ten minutes on another, is taken over.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._touched = 0.0

    def __enter__(self) -> "RunLock":
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}
        for _ in range(2):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._take_over()
                continue
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(mine, file)
            return self
        raise ArtefactError(f"{self.path}: another job took this run folder at the same moment. Start one job only.")

    def __exit__(self, *exception: object) -> None:
        self.path.unlink(missing_ok=True)

    def touch(self) -> None:
        """Show that the job is alive; at most twice a minute."""
        now = time.monotonic()
        if now - self._touched > 30:
            self._touched = now
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _take_over(self) -> None:
        """Remove a stale lock. Raises ArtefactError when the job that holds it is alive."""
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        except (json.JSONDecodeError, OSError):
            holder, age = {}, time.time() - self.path.stat().st_mtime
        host, pid = holder.get("host"), holder.get("pid")
        if host == socket.gethostname() and isinstance(pid, int):
            alive = process_start(pid) is not None and process_start(pid) == holder.get("started")
        else:
            alive = age < STALE_AFTER_S
        if alive:
            raise ArtefactError(
                f"{self.path}: process {pid} on {host} is training in this folder (last sign of life {age:.0f} s ago). "
                "Wait for it, stop it, or choose another output=. If you are sure that it is dead, delete the file."
            )
        self.path.unlink(missing_ok=True)


def process_start(pid: int) -> str | None:
    """Return a mark that tells a process from a later one of the same number, or None when there is none."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == "Z" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignore: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (before, now)} of the leaves that differ; keys at or below one in `ignore` are left out."""
    old, new = dict(configuration.flatten(before)), dict(configuration.flatten(now))
    changed = {key: (old.get(key), new.get(key)) for key in [*old, *(k for k in new if k not in old)]}
    return {key: pair for key, pair in changed.items() if pair[0] != pair[1] and not _covered(key, ignore)}


def open_run(
    folder: Path,
    config: Any,
    *,
    corpus: Mapping[str, str],
    neutral: Sequence[str] = (),
    allow_change: Sequence[str] = (),
    fresh: bool = False,
) -> None:
    """Make `folder` this run's, or check that it is already. Called by rank 0 with the lock held.

    corpus: the store paths' content fingerprints. A folder of an earlier run is taken only when the configuration and
    the corpus are the same, `neutral` keys (which do not change what is learned) and `allow_change` apart. With
    `fresh`, what the earlier run left is moved to `FOLDER.old-N`, never deleted.
    """
    if fresh and (folder / CONFIG).is_file():
        _set_aside(folder)
    checkpoint.sweep(folder / "checkpoints")
    if (folder / CONFIG).is_file():
        _check_unchanged(folder, config, corpus, neutral, allow_change)
    else:
        strangers = [path.name for path in folder.iterdir() if path.name != LOCK]
        if strangers:
            raise ArtefactError(
                f"{folder}: holds {', '.join(sorted(strangers)[:3])} but no {CONFIG}, so it is not a run folder. "
                "Nothing is overwritten: choose another output=."
            )
    configuration.save(folder / CONFIG, config, name="fmct-run", version="1.0")
    write_json(folder / CORPUS, "fmct-corpus", "1.0", {"stores": dict(corpus)})


def cut_logs(folder: Path, step: int) -> None:
    """Cut metrics.jsonl back to `step`, so that the resumed run's is the unbroken run's."""
    truncate_after(folder / METRICS, step)


def load_config(folder: Path) -> dict[str, Any]:
    """Return the resolved configuration of a run folder as a plain tree. Raises ArtefactError."""
    if not (folder / CONFIG).is_file():
        raise ArtefactError(
            f"{folder}: not a run folder: it has no {CONFIG}. Expected the folder that `fmct pretrain … output=RUN` or "
            "`fmct finetune … output=RUN` wrote; check the path."
        )
    return configuration.read_stamped(folder / CONFIG, "fmct-run", "1.0")


def _check_unchanged(
    folder: Path, config: Any, corpus: Mapping[str, str], neutral: Sequence[str], allow_change: Sequence[str]
) -> None:
    changed = differences(load_config(folder), configuration.plain(config), ignore=[*neutral, *allow_change])
    if changed:
        rows = "; ".join(f"{key}: {_short(old)} → {_short(new)}" for key, (old, new) in changed.items())
        first = next(iter(changed))
        raise ConfigError(
            f"{folder} belongs to a run of another configuration: {rows}. To go on with the change say "
            f"--allow-change {first} (for each key); to start anew say --fresh; or choose another output=."
        )
    path = folder / CORPUS
    before = json.loads(path.read_text(encoding="utf-8"))["stores"] if path.is_file() else {}
    if before and sorted(before.values()) != sorted(corpus.values()) and not _covered("corpus", allow_change):
        raise ConfigError(
            f"{folder} was trained on another corpus: {', '.join(before)} had other volumes then (their content "
            "fingerprint differs). Draws would mean other samples. To go on say --allow-change corpus; to start anew, "
            "--fresh."
        )


def _set_aside(folder: Path) -> None:
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    target.mkdir()
    for path in sorted(folder.iterdir()):
        if path.name != LOCK:
            shutil.move(str(path), target / path.name)


def _covered(key: str, patterns: Sequence[str]) -> bool:
    return any(key == pattern or key.startswith(f"{pattern}.") for pattern in patterns)


def _short(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
    return text if len(text) <= 60 else f"{text[:57]}…"


def holding(folder: Path, *, rank: int) -> contextlib.AbstractContextManager[RunLock | None]:
    """Return the lock of a run folder as a context on rank 0, which makes the folder; a context of None elsewhere."""
    if rank != 0:
        return contextlib.nullcontext()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot be written ({error}). Choose another output=.") from None
    return RunLock(folder)

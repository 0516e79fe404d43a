"""One writer a store: a lock file that names its host and process."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmct.errors import DataError

LOCK = "ingest.lock"


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """Hold a store's lock. Raises DataError when another process holds it; a dead one's on this host is taken over."""
    path = store / LOCK
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid())}
    for _ in range(3):
        if _create(path, mine):
            break
        holder = _read(path)
        if holder is not None and not _is_gone(holder):
            raise DataError(
                f"{store}: process {holder.get('pid')} on {holder.get('host')} is ingesting into this store. Wait for "
                f"it, or, when it is gone for certain, delete {path} and run the same command again."
            )
        path.unlink(missing_ok=True)
    else:
        raise DataError(f"{store}: another process keeps taking {path}. Run one ingest a store.")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path, content: dict[str, Any]) -> bool:
    """Make the lock with its content in one step (link), so that nobody ever reads a half-written one."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _is_gone(holder: dict[str, Any]) -> bool:
    """Return whether a lock's process is known to have ended: on this host, and its number free or used anew."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        pid = int(holder["pid"])
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError, TypeError):
        return False
    return holder.get("started") not in (None, _start_time(pid))


def _start_time(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks, where the kernel tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None

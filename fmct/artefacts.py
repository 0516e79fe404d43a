"""Files that fmct writes: atomic, checksummed, and beginning with `format: {name, version}`."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmct.errors import ArtefactError


def fsync_directory(path: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    write_bytes(path, content.encode("utf-8"))


def stamped(name: str, version: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return `payload` behind the format stamp that every fmct artefact begins with."""
    return {"format": {"name": name, "version": version}, **payload}


def check_stamp(content: Any, name: str, version: str, where: str) -> dict[str, Any]:
    """Return `content` without its stamp. Raises ArtefactError for another format or another major version."""
    stamp = content.get("format") if isinstance(content, dict) else None
    if not isinstance(stamp, dict) or stamp.get("name") != name:
        found = stamp.get("name") if isinstance(stamp, dict) else None
        raise ArtefactError(f"{where}: expected a file of format {name!r}, found {found!r}. Check the path.")
    if str(stamp.get("version", "")).split(".")[0] != version.split(".")[0]:
        raise ArtefactError(
            f"{where}: format {name} version {stamp.get('version')} was written by another fmct; this one reads "
            f"version {version.split('.')[0]}.x. Install the fmct that wrote it, or write the file anew."
        )
    return {key: value for key, value in content.items() if key != "format"}


def write_json(path: Path, name: str, version: str, payload: Mapping[str, Any]) -> None:
    """Write `payload` as stamped, indented JSON, atomically. NaN is refused: JSON has none."""
    write_text(path, json.dumps(stamped(name, version, payload), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, name: str, version: str) -> dict[str, Any]:
    """Return the payload of a stamped JSON file. Raises ArtefactError when absent, broken or of another format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such file; expected a {name} file there.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path}: not readable as JSON ({error}); it was altered or cut short.") from None
    return check_stamp(content, name, version, str(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

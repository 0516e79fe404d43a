"""The encoder or model folder: which files it holds, that they are whole, and how it comes into being all at once."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmct.artefacts import fsync_directory, sha256_of, write_text
from fmct.errors import ArtefactError

WEIGHTS, CONFIG, PREPROCESS, GOLDEN, CARD, SUMS = (
    "model.safetensors",
    "config.json",
    "preprocess.json",
    "golden.json",
    "README.md",
    "SHA256SUMS",
)
HEADS = "heads.safetensors"
BASELINE = "baseline.json"
"""A model without a network that stands beside the published one (see fmct.contrast.hu_baseline)."""
REQUIRED = (WEIGHTS, CONFIG, PREPROCESS, GOLDEN, CARD, SUMS)
ALLOWED = (*REQUIRED, HEADS, BASELINE)
CONFIG_FORMAT = ("fmct-encoder", "1.0")
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+)")


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over every other file of `folder`, in the form that `sha256sum -c` reads."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    write_text(folder / SUMS, "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names))


def read_sums(folder: Path) -> dict[str, str]:
    """Return {file name: SHA-256} as recorded. Raises ArtefactError when absent or not in the form of `sha256sum`."""
    path = folder / SUMS
    if not path.is_file():
        raise ArtefactError(
            f"{folder}: holds no {SUMS}, so it is not a whole encoder or model folder. Export or download it again."
        )
    sums = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise ArtefactError(
                f"{path}: {line[:80]!r} is not a line of `sha256sum`. Export or download the folder again."
            )
        sums[match[2]] = match[1]
    return sums


def verify(folder: Path, *, again: str = "Export or download it again.") -> dict[str, str]:
    """Return {file name: SHA-256} after every file of the encoder folder was read and matched.

    Files that SHA256SUMS does not name are not read. Raises ArtefactError that names the first faulty file; `again`
    ends its text.
    """
    sums = read_sums(folder)
    unlisted = [name for name in REQUIRED if name != SUMS and name not in sums]
    if unlisted:
        raise ArtefactError(f"{folder}: {SUMS} does not name {', '.join(unlisted)}. {again}")
    for name, expected in sums.items():
        if name not in ALLOWED:
            raise ArtefactError(
                f"{folder}: {SUMS} names {name}, which has no place in an encoder or model folder. {again}"
            )
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"{folder}: {name} is missing, though {SUMS} names it. {again}")
        found = sha256_of(path)
        if found != expected:
            raise ArtefactError(
                f"{path}: the content has SHA-256 {found[:16]}…, and {SUMS} says {expected[:16]}…: "
                f"the file was altered or cut short. {again}"
            )
    return sums


def fingerprint(folder: Path) -> str:
    """Return one SHA-256 for the whole encoder: of its SHA256SUMS."""
    return hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()


def is_encoder(folder: Path) -> bool:
    """Return whether `folder` looks like an encoder folder, whole or not."""
    return (folder / PREPROCESS).is_file() or (folder / SUMS).is_file() or (folder / WEIGHTS).is_file()


@contextmanager
def committed(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary sibling folder to write in, and make it `folder` when the block ends without an error.

    A reader sees no folder, the old one or the new one, never a part. Raises ArtefactError when `folder` exists and
    may not be replaced: never anything that is not an encoder folder.
    """
    folder = folder.absolute()
    refuse_to_overwrite(folder, replace=replace)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
        temporary.mkdir()
    except OSError as error:
        raise ArtefactError(
            f"{folder}: cannot be written ({error.strerror}). Choose a folder you may write to."
        ) from None
    try:
        yield temporary
        _flush(temporary)
        retired = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            os.rename(folder, retired)
        os.rename(temporary, folder)
        fsync_directory(folder.parent)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_to_overwrite(folder: Path, *, replace: bool) -> None:
    """Raise ArtefactError unless `folder` is free, empty, or an encoder folder that may be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not is_encoder(folder):
        raise ArtefactError(f"{folder}: exists and is not an encoder folder; nothing was written. Choose another name.")
    if not replace:
        raise ArtefactError(
            f"{folder}: already holds what another run or step exported; nothing was written. "
            "Choose another folder, or add --overwrite to replace it."
        )


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fsync_directory(folder)

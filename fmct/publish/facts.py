"""The training facts of an encoder: what a reader of the card needs to judge it and to check it against a test set."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

import fmct

HASH_DIGITS = 16  # of a series' voxel hash: 64 bits, so no two of a billion series are confused
_MACHINE_KEYS = {"path", "store", "stores", "output", "init", "cache", "folder", "directory", "capture", "patients"}
_PACKAGES = ("torch", "timm", "numpy", "safetensors", "deepspeed")


class StoredSeries(Protocol):
    """What is asked of a store's entry."""

    @property
    def id(self) -> str:
        """The pseudonym of the series."""
        ...

    @property
    def patient(self) -> str:
        """The pseudonym of its patient."""
        ...

    @property
    def modality(self) -> str:
        """Such as CT."""
        ...

    @property
    def content_hash(self) -> str:
        """SHA-256 of voxels and grid."""
        ...

    @property
    def voxel_hash(self) -> str:
        """SHA-256 of the voxels alone."""
        ...


def corpus_facts(entries: Iterable[StoredSeries]) -> dict[str, Any]:
    """Return counts, the fingerprint and the shortened voxel hashes of the series that a run trained on.

    fingerprint: SHA-256 of the sorted content hashes (voxels and grid). voxel_hashes: the first 16 hexadecimal digits
    of each hash of the voxels alone, sorted; a test set overlaps with the corpus where it shares one, whatever its
    headers say. No ids, no paths.
    """
    series = list(entries)
    hashes = sorted({entry.content_hash for entry in series})
    modalities = sorted({entry.modality for entry in series})
    return {
        "series": len(series),
        "patients": len({entry.patient for entry in series}),
        "modality": {modality: sum(entry.modality == modality for entry in series) for modality in modalities},
        "fingerprint": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "voxel_hashes": sorted({entry.voxel_hash[:HASH_DIGITS] for entry in series}),
    }


def overlap(facts: Mapping[str, Any], entries: Iterable[StoredSeries]) -> list[str]:
    """Return the ids of those `entries` (of a test set) whose voxels an encoder's training facts name."""
    known = set(facts.get("corpus", {}).get("voxel_hashes", ()))
    return [entry.id for entry in entries if entry.voxel_hash[:HASH_DIGITS] in known]


def without_machine(tree: Any) -> Any:
    """Return a configuration without its file-system values: keys such as path and output, and absolute paths."""
    if isinstance(tree, Mapping):
        return {key: without_machine(value) for key, value in tree.items() if str(key) not in _MACHINE_KEYS}
    if isinstance(tree, (list, tuple)):
        return [without_machine(value) for value in tree]
    if isinstance(tree, str) and (os.path.isabs(tree) or tree.startswith(("~", "./", "../")) or "\\" in tree):
        return None
    return tree


def versions() -> dict[str, str]:
    """Return the versions of fmct, Python and the packages that features depend on."""
    found = {"fmct": fmct.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return what this machine computes with: processor or GPU, and how many; no host name."""
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(0), "count": torch.cuda.device_count()}
    return {"device": f"CPU {_cpu_name()}", "count": os.cpu_count() or 1}


def code_commit() -> str | None:
    """Return the commit of the clone that fmct runs from, with `+` when files differ, or None outside a clone."""
    root = Path(fmct.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}+" if _git(root, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

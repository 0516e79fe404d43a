"""The manifest: one JSON line per series of a store, with what an audit needs and nothing that names a person."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fmct.artefacts import write_text
from fmct.errors import ArtefactError
from fmct.shapes import Triple, TripleF

MANIFEST = "manifest.jsonl"
RECORD = "store.json"
STORE_FORMAT = ("fmct-store", "1.0")
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: factor to level 0, shape in voxels, spacing in mm, each (z, y, x).

    Voxel i of the level sits at level-0 index i·f + (f − 1)/2.
    """

    factor: Triple
    shape: Triple
    spacing_mm: TripleF


@dataclass(frozen=True)
class Entry:
    """One series of a store.

    id, patient: pseudonyms (keyed hashes). affine: canonical voxel (z, y, x) → RAS mm; original_affine: as the file had
    it. value_range: smallest and largest value in `units`. content_hash: SHA-256 of voxels and grid; voxel_hash: of
    the voxels alone. A stored int16 times `scale` is the value in `units`, wrong by at most `max_error` (0 for CT).
    shard: the sealed file, relative to the store. bytes: compressed size. facts: technical tags without identity.
    """

    id: str
    patient: str
    modality: str
    units: str
    shape: Triple
    spacing_mm: TripleF
    affine: Matrix
    original_affine: Matrix
    value_range: tuple[float, float]
    content_hash: str
    voxel_hash: str
    levels: tuple[Level, ...]
    shard: str = ""
    scale: float = 1.0
    max_error: float = 0.0
    bytes: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def factors(self) -> tuple[Triple, ...]:
        """The factor of every level."""
        return tuple(level.factor for level in self.levels)


def entry_to_json(entry: Entry) -> str:
    """Return an entry as one line of JSON, without line break."""
    return json.dumps(asdict(entry), allow_nan=False, separators=(",", ":"))


def entry_from_json(text: str, where: str) -> Entry:
    """Return the entry of one manifest line. Raises ArtefactError when it is not one."""
    try:
        tree = json.loads(text)
        tree["levels"] = tuple(Level(**{k: tuple(v) for k, v in level.items()}) for level in tree["levels"])
        for name in ("shape", "spacing_mm", "value_range"):
            tree[name] = tuple(tree[name])
        for name in ("affine", "original_affine"):
            tree[name] = tuple(tuple(row) for row in tree[name])
        return Entry(**tree)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactError(
            f"{where}: not a manifest entry ({type(error).__name__}: {error}); the manifest was altered or written by "
            "another fmct. Restore it, or ingest into a new store."
        ) from None


def read_lines(path: Path, length: int | None = None) -> list[str]:
    """Return the complete lines of a JSON-lines file ([] when absent), at most its first `length` bytes.

    A last line without a line break is one that a kill cut short: it is left out.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    content = content[:length] if length is not None else content
    return content[: content.rfind(b"\n") + 1].decode("utf-8").splitlines()


def read_manifest(store: Path, length: int | None = None) -> list[Entry]:
    """Return the entries of a store in manifest order. Raises ArtefactError for a line that is not an entry."""
    path = store / MANIFEST
    return [entry_from_json(line, f"{path}: line {n}") for n, line in enumerate(read_lines(path, length), start=1)]


def write_manifest(store: Path, entries: Iterable[Entry]) -> None:
    """Write the whole manifest atomically."""
    write_text(store / MANIFEST, "".join(entry_to_json(entry) + "\n" for entry in entries))


def append_line(path: Path, line: str) -> None:
    """Append one line to a JSON-lines file durably; what a kill cut short before is removed first."""
    with open(path, "ab+") as file:
        size = file.tell()
        if size:
            file.seek(max(0, size - (1 << 20)))
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        file.write(line.encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())

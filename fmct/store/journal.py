"""What an ingest writes beside the parts: manifest, ledger, sealed shards, in an order that any kill leaves mendable.

A part is sealed by a worker, then its entry is appended to the manifest (now it is in the store), then, when 64 entries
or 2 GB are together, the parts of a shard are copied into one sealed file and removed. Series are committed in the
order in which they were found, whatever order workers finish in, so a store is a function of its sources.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fmct.artefacts import write_text
from fmct.errors import ArtefactError
from fmct.store import hdf5
from fmct.store.manifest import (
    MANIFEST,
    Entry,
    append_line,
    entry_to_json,
    read_lines,
    read_manifest,
    write_manifest,
)
from fmct.store.reader import part_name
from fmct.store.take import READER_FAILED

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class LedgerRow:
    """One line of the ledger: a file or series not taken. id, patient: pseudonyms; file: as the ledger may name it."""

    id: str
    file: str
    code: str
    reason: str
    numbers: dict[str, Any]
    patient: str = ""
    bytes: int = 0
    recipe: str = ""


class Journal:
    """The written state of one store during an ingest. One writer at a time (fmct.store.lock)."""

    def __init__(self, store: Path, *, sources: Path, shard_series: int, shard_bytes: int) -> None:
        self.store = store
        self.sources = sources
        self._shard_series, self._shard_bytes = shard_series, shard_bytes
        _sweep(store)
        self.entries = read_manifest(store)
        self.ledger = [LedgerRow(**json.loads(line)) for line in read_lines(store / LEDGER)]
        self._taken = {entry.id for entry in self.entries}
        self._by_voxels = {entry.voxel_hash: entry for entry in self.entries}
        self._refused = {row.id: row for row in self.ledger}
        self._named = {line.partition(",")[0] for line in read_lines(sources)}
        self._open: list[Entry] = []
        self._mend_shards()

    def knows(self, name: str, *, recipe: str, size: int) -> bool:
        """Return whether a series was taken, or refused under the same rules with the same bytes."""
        row = self._refused.get(name)
        if name in self._taken:
            return True
        return row is not None and row.code != READER_FAILED and (row.recipe, row.bytes) == (recipe, size)

    def forget(self, names: set[str]) -> None:
        """Drop the ledger's rows of series that are tried again."""
        if any(row.id in names for row in self.ledger):
            self.ledger = [row for row in self.ledger if row.id not in names]
            self._refused = {row.id: row for row in self.ledger}
            write_text(self.store / LEDGER, "".join(_to_json(row) + "\n" for row in self.ledger))

    def same_content(self, entry: Entry) -> Entry | None:
        """Return the entry already in the store whose voxels are equal, if any."""
        return self._by_voxels.get(entry.voxel_hash)

    def commit(self, entry: Entry, file: str) -> Entry:
        """Put a sealed part's entry into the store and return it with its shard."""
        full = len(self._open) >= self._shard_series
        if self._open and (full or sum(e.bytes for e in self._open) + entry.bytes > self._shard_bytes):
            self.seal()
        entry = replace(entry, shard=self._open[0].shard if self._open else self._next_shard())
        self._name(entry.id, entry.patient, file)
        append_line(self.store / MANIFEST, entry_to_json(entry))
        self.entries.append(entry)
        self._taken.add(entry.id)
        self._by_voxels[entry.voxel_hash] = entry
        self._open.append(entry)
        if len(self._open) >= self._shard_series:
            self.seal()
        return entry

    def refuse(self, row: LedgerRow, file: str) -> None:
        """Append one line to the ledger and remove the part that the series may have left."""
        self._name(row.id, row.patient, file)
        append_line(self.store / LEDGER, _to_json(row))
        self.ledger.append(row)
        self._refused[row.id] = row
        (self.store / part_name(row.id)).unlink(missing_ok=True)

    def seal(self) -> None:
        """Copy the open entries' parts into their shard and remove them."""
        if self._open:
            self._write_shard(self._open)
            self._open = []

    def finish(self) -> dict[str, str]:
        """Seal what is open, make one patient of those who share a scan, return {patient: who stands for it}."""
        self.seal()
        joined = _joined_patients(self.entries, self.ledger)
        merged = [replace(entry, patient=joined.get(entry.patient, entry.patient)) for entry in self.entries]
        if merged != self.entries:
            write_manifest(self.store, merged)
            self.entries = merged
        self._remove_known_parts()
        if (self.store / "parts").is_dir() and not any((self.store / "parts").iterdir()):
            (self.store / "parts").rmdir()
        return joined

    def _next_shard(self) -> str:
        last = self.entries[-1].shard if self.entries else ""
        return f"shards/{int(Path(last).stem) + 1 if last else 0:05d}.h5"

    def _write_shard(self, entries: Sequence[Entry]) -> None:
        parts = [(entry.id, self.store / part_name(entry.id)) for entry in entries]
        hdf5.write_shard(self.store / entries[0].shard, parts)
        for _, part in parts:
            part.unlink(missing_ok=True)

    def _mend_shards(self) -> None:
        """Seal the shards that a kill left in parts; the last stays open for what comes."""
        shards: dict[str, list[Entry]] = {}
        for entry in self.entries:
            shards.setdefault(entry.shard, []).append(entry)
        for number, (shard, entries) in enumerate(shards.items(), start=1):
            if (self.store / shard).is_file():
                continue
            lost = [entry.id for entry in entries if not (self.store / part_name(entry.id)).is_file()]
            if lost:
                raise ArtefactError(
                    f"{self.store}: {shard} is gone, and with it {len(lost)} series (first: {lost[0]}). Restore the "
                    "shard from a copy, or ingest into a new store."
                )
            if number < len(shards) or len(entries) >= self._shard_series:
                self._write_shard(entries)
            else:
                self._open = entries
        self._remove_known_parts()

    def _remove_known_parts(self) -> None:
        """Remove parts of entries that a sealed shard holds, or that were refused after they were read."""
        waiting = {entry.id for entry in self._open}
        for part in (self.store / "parts").glob("*.h5"):
            name = part.stem
            if name not in waiting and (name in self._taken or name in self._refused):
                part.unlink(missing_ok=True)

    def _name(self, name: str, patient: str, file: str) -> None:
        """Note whose pseudonyms these are, outside the store."""
        if name in self._named:
            return
        if not self._named:
            self.sources.touch(mode=0o600)
            append_line(self.sources, "id,patient,file")
            self._named.add("id")
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([name, patient, file.replace("\n", " ")])
        append_line(self.sources, text.getvalue())
        self._named.add(name)


def _to_json(row: LedgerRow) -> str:
    return json.dumps(row.__dict__, allow_nan=False, separators=(",", ":"))


def _sweep(store: Path) -> None:
    """Remove temporary files of writers that were killed."""
    for folder in (store, store / "parts", store / "shards"):
        for path in folder.glob(".*.tmp-*"):
            path.unlink(missing_ok=True)


def _joined_patients(entries: Sequence[Entry], ledger: Sequence[LedgerRow]) -> dict[str, str]:
    """Return {patient: patient in its place} for those who share equal voxels with an earlier one."""
    by_id = {entry.id: entry.patient for entry in entries}
    order = {patient: n for n, patient in reversed(list(enumerate(entry.patient for entry in entries)))}
    place: dict[str, str] = {}

    def root(patient: str) -> str:
        """Return who stands for a patient so far."""
        while patient in place:
            patient = place[patient]
        return patient

    for row in ledger:
        same_as = row.numbers.get("same_as") if row.code == "duplicate-content" else None
        if same_as in by_id and row.patient:
            pair = sorted((root(row.patient), root(by_id[same_as])), key=lambda p: (order.get(p, len(order)), p))
            if pair[0] != pair[1]:
                place[pair[1]] = pair[0]
    return {patient: root(patient) for patient in place}

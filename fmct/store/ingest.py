"""Scans → store, in parallel, resumable, each refusal with its reason."""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fmct.artefacts import read_json, write_json
from fmct.config import build, plain
from fmct.errors import ConfigError, DataError
from fmct.io import ReadPolicy
from fmct.shapes import Triple, triple
from fmct.store import codec_trial, lock
from fmct.store.codec import dataset_arguments
from fmct.store.fingerprint import PseudonymKey, load_key
from fmct.store.journal import Journal, LedgerRow
from fmct.store.manifest import RECORD, STORE_FORMAT
from fmct.store.patients import PatientNames
from fmct.store.pool import own_pool
from fmct.store.progress import Reporter, Silent
from fmct.store.sources import Found, find
from fmct.store.split_table import read_splits
from fmct.store.take import Job, Refused, Taken, read_found, take

BYTES_PER_VOXEL = 12  # what a worker holds at its peak for each voxel of a series, measured: 6 × int16


@dataclass(frozen=True)
class IngestConfig:
    """How scans become a store.

    modality: CT, or a list such as [CT, PT] or [MR]. read: the policy of refusals and repairs (fmct.io.ReadPolicy);
    `modality`, `tilt` and `spacing` stand for its keys `modalities`, `tilt` and `spacing`. workers: 0 takes a process a
    core. budget_gb: memory of one worker; larger series are refused. chunk, codec: see fmct.store.codec_trial.
    patients: CSV with the columns file and patient; patient_regex: finds the patient in a path; both for formats that
    carry none. key_file: the pseudonyms' key, STORE.key when empty. plain_names: let the ledger name files as they are
    called (paths may name patients). shard_series, shard_gb: what a sealed file holds at most.
    """

    modality: Any = "CT"
    tilt: str = "refuse"
    spacing: str = "refuse"
    read: dict[str, Any] = field(default_factory=dict)
    workers: int = 0
    budget_gb: float = 4.0
    chunk: list[int] = field(default_factory=lambda: [32, 32, 32])
    codec: str = "bitshuffle-lz4"
    patients: str = ""
    patient_regex: str = ""
    key_file: str = ""
    plain_names: bool = False
    shard_series: int = 64
    shard_gb: float = 2.0
    report_every_s: float = 10.0


@dataclass(frozen=True)
class IngestSummary:
    """What one ingest did. taken, patients, refused: of the whole store; new: of this run; seconds: sums by stage."""

    store: Path
    taken: int
    new: int
    patients: int
    joined_patients: int
    skipped: int
    refused: dict[str, int]
    bytes: int
    seconds: dict[str, float]
    sources_table: Path
    unused_patients: int = 0
    split_patients: int = 0

    def __str__(self) -> str:
        lines = [
            f"{self.store}: {self.taken} series of {self.patients} patients, {self.bytes / 1e6:.1f} MB "
            f"({self.new} new, {self.skipped} known from before)."
        ]
        if self.joined_patients:
            lines.append(
                f"{self.joined_patients} patients share a scan with another one: each pair is one patient now."
            )
        if self.split_patients:
            lines.append(
                f"{self.split_patients} of them stood in two splits of splits.csv, and now have the split of the "
                "patient they were joined to: what was trained or scored before this ingest may have mixed them."
            )
        if self.unused_patients:
            lines.append(f"{self.unused_patients} rows of the patients' table name no file that was found.")
        if self.refused:
            width = max(len(code) for code in self.refused)
            lines.append(f"Not taken ({sum(self.refused.values())}), by reason; each in {self.store / 'ledger.jsonl'}:")
            lines += [f"  {code:<{width}}  {count}" for code, count in self.refused.items()]
        lines.append(f"Whose pseudonyms these are: {self.sources_table} (it holds paths; it is not part of the store).")
        return "\n".join(lines)


def ingest(
    sources: Sequence[str | Path],
    store_path: str | Path,
    *,
    config: IngestConfig | None = None,
    executor: Executor | None = None,
    progress: Reporter | None = None,
) -> IngestSummary:
    """Read every scan under `sources` into a store and return what was done.

    executor: any concurrent.futures.Executor, such as Dask's `client.get_executor()`; None makes a process pool.
    The same call again continues after a kill and takes up new scans. Raises ConfigError, DataError (another ingest
    runs, the disk is full, the key is wrong) and ArtefactError (the store lost files).
    """
    config = config or IngestConfig()
    progress = progress or Silent()
    policy = read_policy(config)
    names = PatientNames(config.patients or None, config.patient_regex or None)
    store = Path(store_path)
    for source in sources:
        if not Path(source).exists():
            raise DataError(f"{source}: no such file or folder to ingest.")
    if not sources:
        raise DataError("nothing to ingest: give one or more files or folders, then the store.")
    _make_folder(store)
    with ExitStack() as stack:
        stack.enter_context(lock.writing(store))
        key = _open_record(store, config, policy)
        sources_table = store.with_name(store.name + ".sources.csv")
        shard_bytes = int(config.shard_gb * 1e9)
        journal = Journal(store, sources=sources_table, shard_series=config.shard_series, shard_bytes=shard_bytes)
        run = _Run(config, policy, key, names, journal, progress)
        stack.callback(progress.close)
        found = list(find(sources, policy, exclude=store))
        waiting = run.waiting(found)
        progress.start(len(waiting))
        if waiting:
            pool = executor or stack.enter_context(own_pool(config.workers, len(waiting)))
            run.drain(pool, waiting)
        joined = journal.finish()
        skipped = len(found) - len(waiting)
    return IngestSummary(
        store=store,
        taken=len(journal.entries),
        new=run.new,
        patients=len({entry.patient for entry in journal.entries}),
        joined_patients=len(joined),
        skipped=skipped,
        refused=dict(Counter(row.code for row in journal.ledger).most_common()),
        bytes=sum(entry.bytes for entry in journal.entries),
        seconds=dict(run.seconds),
        sources_table=sources_table,
        unused_patients=names.unused(item.name for item in found),
        split_patients=_in_two_splits(joined, store),
    )


def _in_two_splits(joined: Mapping[str, str], store: Path) -> int:
    """Return how many joined patients had another split than the patient they were joined to."""
    splits = read_splits(store)
    return sum(splits.get(old, splits.get(new)) != splits.get(new) for old, new in joined.items() if new in splits)


def read_policy(config: IngestConfig) -> ReadPolicy:
    """Return the policy of reading that a configuration asks for, its voxel limit from the workers' budget."""
    modalities = [config.modality] if isinstance(config.modality, str) else list(config.modality)
    limit = int(config.budget_gb * 1e9 / BYTES_PER_VOXEL)
    shared = {"modalities", "tilt", "spacing"} & set(config.read)
    if shared:
        raise ConfigError(
            f"read.{min(shared)}: give this as {'modality' if 'modalities' in shared else min(shared)}=…."
        )
    tree = {
        "max_voxels": limit,
        **config.read,
        "modalities": modalities,
        "tilt": config.tilt,
        "spacing": config.spacing,
    }
    if tree["max_voxels"] > limit:
        raise ConfigError(
            f"read.max_voxels={tree['max_voxels']}: a worker's budget of {config.budget_gb:g} GB holds {limit} voxels "
            f"({BYTES_PER_VOXEL} bytes each at the peak). Raise budget_gb."
        )
    return build(ReadPolicy, tree, "read")


class _Run:
    """One ingest: turns what was found into jobs, and what comes back into lines of the journal, in order."""

    def __init__(
        self,
        config: IngestConfig,
        policy: ReadPolicy,
        key: PseudonymKey,
        names: PatientNames,
        journal: Journal,
        progress: Reporter,
    ) -> None:
        self._config, self._policy, self._key, self._names = config, policy, key, names
        self._journal, self._progress = journal, progress
        self._recipe = _recipe_of(config, policy)
        self._chunk: Triple = triple(config.chunk, "chunk")
        self.new = 0
        self.seconds: Counter[str] = Counter()

    def waiting(self, found: Sequence[Found]) -> list[Found]:
        """Return what is not in the store or its ledger yet, or was refused under other rules."""
        waiting = [
            item for item in found if not self._journal.knows(self._id(item), recipe=self._recipe, size=item.bytes)
        ]
        self._journal.forget({self._id(item) for item in waiting})
        return waiting

    def drain(self, executor: Executor, waiting: Sequence[Found]) -> None:
        """Work through `waiting` with a bounded number of series under way, and write results in order."""
        pending: deque[tuple[Found, Future[Taken | Refused] | None]] = deque()
        window = 4 * (getattr(executor, "_max_workers", None) or 8)
        for item in waiting:
            job = None if item.rejected else self._job(item)
            pending.append((item, executor.submit(take, job) if job else None))
            while pending and (len(pending) > window or pending[0][1] is None):
                self._settle(*pending.popleft())
        while pending:
            self._settle(*pending.popleft())

    def _settle(self, item: Found, future: "Future[Taken | Refused] | None") -> None:
        name, patient = self._id(item), self._patient(item)
        if future is None:
            rejected = item.rejected
            assert rejected is not None
            result: Taken | Refused = Refused(
                rejected.code, rejected.reason, {**rejected.numbers, "files": rejected.files}
            )
        else:
            result = _result(future)
        if isinstance(result, Taken):
            twin = self._journal.same_content(result.entry)
            if twin is None:
                self._journal.commit(result.entry, item.path)
                self.seconds.update(result.seconds)
                self.new += 1
            else:
                result = Refused("duplicate-content", "the same voxels are in the store already", {"same_as": twin.id})
        if isinstance(result, Refused):
            row = LedgerRow(
                id=name,
                file=item.name if self._config.plain_names else name + item.suffix,
                code=result.code,
                reason=result.reason if self._config.plain_names else item.without_names(result.reason),
                numbers=json.loads(json.dumps(result.numbers, default=str)),
                patient=patient,
                bytes=item.bytes,
                recipe=self._recipe,
            )
            self._journal.refuse(row, item.path)
        self._progress.advance(f"{len(self._journal.entries)} taken, {len(self._journal.ledger)} not")

    def _id(self, item: Found) -> str:
        return self._key.pseudonym("series", item.key)

    def _patient(self, item: Found) -> str:
        named = self._names.of(item.name, item.patient)
        return self._key.pseudonym("patient", named) if named else self._key.pseudonym("series-patient", item.key)

    def _job(self, item: Found) -> Job:
        assert item.candidate is not None
        return Job(
            name=self._id(item),
            patient=self._patient(item),
            store=str(self._journal.store.resolve()),
            read=partial(read_found, item.candidate, self._policy),
            recipe=self._recipe,
            chunk=self._chunk,
            codec=self._config.codec,
        )


def _result(future: "Future[Taken | Refused]") -> Taken | Refused:
    """Return what a worker found; a disk that is full or gone stops the ingest, a worker that died is one refusal."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process ended without an answer. Where nothing above says why, it was killed, most likely for "
            "want of memory. Run the same command again: it continues. Should it happen again, lower workers or "
            "budget_gb, or read in this process: workers=1."
        ) from None
    except OSError as error:
        raise DataError(
            f"the store cannot be written ({error.strerror or type(error).__name__}). Nothing taken so far is lost: "
            "make room or mend the disk, then run the same command again."
        ) from None


def _make_folder(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
        probe = store / ".writable.tmp-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"{store}: cannot be written ({error.strerror}). Give a folder that you may write to."
        ) from None
    foreign = [p.name for p in store.iterdir() if not p.name.startswith(".")]
    if foreign and not (store / RECORD).exists() and not set(foreign) <= {"parts", "shards", lock.LOCK}:
        raise DataError(f"{store}: holds other files (such as {foreign[0]}). Give a new or empty folder for the store.")


def _open_record(store: Path, config: IngestConfig, policy: ReadPolicy) -> PseudonymKey:
    """Return the store's key; a new store gets its record, an old one is checked against the"""
    key_file = Path(config.key_file) if config.key_file else store.with_name(store.name + ".key")
    if key_file.resolve().is_relative_to(store.resolve()):
        raise ConfigError(f"key_file={key_file}: the key must lie outside the store, which may be shared.")
    chunk = list(triple(config.chunk, "chunk"))
    dataset_arguments(config.codec)
    if (store / RECORD).exists():
        record = read_json(store / RECORD, *STORE_FORMAT)
        if (record["codec"], record["chunk"]) != (config.codec, chunk):
            raise ConfigError(
                f"{store}: made with codec={record['codec']} chunk={record['chunk']}, this asks for "
                f"codec={config.codec} chunk={chunk}. One store has one of each: give those, or make a new store."
            )
        return load_key(key_file, expected=record["key_fingerprint"])
    key = load_key(key_file, expected=None)
    payload = {
        "codec": config.codec,
        "chunk": chunk,
        "chosen_because": codec_trial.reason(config.codec, chunk),
        "modalities": list(policy.modalities),
        "key_fingerprint": key.fingerprint,
        "shard_series": config.shard_series,
        "shard_gb": config.shard_gb,
    }
    write_json(store / RECORD, *STORE_FORMAT, payload)
    return key


def _recipe_of(config: IngestConfig, policy: ReadPolicy) -> str:
    """Return a short hash of everything that decides whether and how a scan is taken."""
    text = json.dumps([plain(policy), list(config.chunk), config.codec], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

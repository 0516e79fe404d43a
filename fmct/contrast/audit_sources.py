"""What an audit looks at: series by id, with their DICOM headers and their pixels, of folders or of a store."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from fmct.contrast.gate import ContrastCall, ContrastGate
from fmct.contrast.header import HeaderState, judge_series
from fmct.data.series import scan_of_entry
from fmct.io import Candidate, ReadPolicy, discover, read_candidate
from fmct.io.dicom_contrast import SliceContrast, read_contrast_headers
from fmct.store import is_store
from fmct.store.fingerprint import PseudonymKey, load_key
from fmct.store.manifest import Entry
from fmct.store.reader import Store
from fmct.store.sources import find
from fmct.volume import Volume

_NO_DICOM = HeaderState("absent", (), "not DICOM: no header speaks of contrast")


class Gate(Protocol):
    """What says whether a volume has contrast: fmct.contrast.gate.ContrastGate, or one of a user's own."""

    def predict(self, volume: Volume) -> ContrastCall:
        """Return the call on a canonical CT volume."""
        ...


@dataclass(frozen=True)
class Audited:
    """One series. series: its id in a store, else its path below SOURCE. header(), paper_header(): see HeaderState;
    call(gate): what a gate says, raising DataError where the pixels cannot be read.
    """

    series: str
    patient: str
    headers: Callable[[], Sequence[SliceContrast]]
    call: Callable[[Gate], ContrastCall]
    instead: HeaderState | None = None

    def header(self) -> tuple[HeaderState, list[SliceContrast]]:
        """Return the state of the header, and the headers of its slices."""
        slices = list(self.headers())
        return (judge_series(slices) if slices else self.instead or _NO_DICOM), slices


def audited_series(sources: Sequence[str | Path]) -> Iterator[Audited]:
    """Yield every CT series of folders, files or stores, in a fixed order, each store's with its sources' headers.

    Raises DataError when a source does not exist.
    """
    for source in sources:
        if is_store(source):
            yield from _of_store(Path(source))
        else:
            yield from _of_folder(Path(source))


def _of_folder(source: Path) -> Iterator[Audited]:
    policy = ReadPolicy()
    found = [item for item in discover([source], policy=policy) if isinstance(item, Candidate)]
    found = [item for item in found if item.modality in (None, "CT")]
    counts = Counter(_place(item) for item in found)
    for item in found:
        place = _place(item)
        # A folder may hold several DICOM series: the key, a hash, tells them apart.
        name = item.key if not place else place if counts[place] == 1 else f"{place}#{item.key}"
        yield Audited(name, item.patient or "", partial(_headers, item), partial(_call_on_file, item, policy))


def _place(item: Candidate) -> str:
    """Return where a series lies below its source: its file, or its DICOM folder; "" for the source itself."""
    path = PurePosixPath(item.name)
    place = path.parent if item.format == "dicom" else path
    return "" if str(place) == "." else place.as_posix()


def _of_store(path: Path) -> Iterator[Audited]:
    with Store.open(path) as store:
        found = _candidates(store)
        for entry in store.entries:
            if entry.modality != "CT":
                continue
            item = found.get(entry.id)
            headers = partial(_headers, item) if item else (lambda: ())
            yield Audited(entry.id, entry.patient, headers, partial(_call_on_entry, store, entry), _from_facts(entry))


def _from_facts(entry: Entry) -> HeaderState:
    """Return what the manifest's facts allow to say where the source's header is not at hand."""
    fact = entry.facts.get("contrast_agent")
    if fact == "named":
        why = "the manifest says that an agent's field is filled, not with what; the DICOM source is not at hand"
        return HeaderState("ambiguous", ("ContrastBolusAgent",), why)
    if fact is None:
        return _NO_DICOM
    return HeaderState("absent", ("ContrastBolusAgent",), f"the manifest says of the agent: {fact}")


def _candidates(store: Store) -> dict[str, Candidate]:
    """Return {entry id: its DICOM source}, of the sources table and the key beside a store, where they still lie."""
    table = store.path.with_name(store.path.name + ".sources.csv")
    key_path = store.path.with_name(store.path.name + ".key")
    if not table.is_file() or not key_path.is_file():
        return {}
    key: PseudonymKey = load_key(key_path, expected=store.record["key_fingerprint"])
    with open(table, newline="", encoding="utf-8") as file:
        places = sorted({row["file"] for row in csv.DictReader(file) if row.get("file")})
    folders = [place for place in places if Path(place).is_dir()]
    found: dict[str, Candidate] = {}
    policy = ReadPolicy(modalities=tuple(store.record["modalities"]))
    for folder in folders:
        for item in find([folder], policy, exclude=store.path):
            if item.candidate is not None and item.candidate.format == "dicom":
                found[key.pseudonym("series", item.key)] = item.candidate
    return found


def _headers(item: Candidate) -> Sequence[SliceContrast]:
    return read_contrast_headers(item.paths) if item.format == "dicom" else ()


def _call_on_file(item: Candidate, policy: ReadPolicy, gate: Gate) -> ContrastCall:
    return gate.predict(read_candidate(item, policy))


def _call_on_entry(store: Store, entry: Entry, gate: Gate) -> ContrastCall:
    if isinstance(gate, ContrastGate):  # it reads no more of the pyramid than it needs
        return gate.of_scan(scan_of_entry(gate.model.preprocessing, store, entry))
    return gate.predict(store.volume(entry))


def as_row(call: ContrastCall) -> dict[str, Any]:
    """Return a call as plain cells: probability (None where there is none), phase, seconds."""
    probability = None if call.probability != call.probability else round(float(call.probability), 6)
    return {"probability": probability, "phase": call.phase or "", "seconds": call.seconds}

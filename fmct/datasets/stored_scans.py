"""Which scan on disk became which series of a store: names on one side, pseudonyms on the other.

Public label tables speak of files, slices and patients by name; everything behind the store speaks of pseudonyms. This
is where the two meet, with the store's own key, so that no name has to travel further.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fmct.artefacts import read_json
from fmct.errors import DataError
from fmct.io import ReadPolicy
from fmct.io.dicom_header import quiet, read_dataset
from fmct.store.fingerprint import load_key
from fmct.store.manifest import RECORD, STORE_FORMAT, Entry, read_manifest
from fmct.store.sources import Found, find
from fmct.table_files import write_rows


@dataclass(frozen=True)
class StoredScan:
    """One series of a store and where it came from. `found` names files and patients: keep it out of artefacts."""

    entry: Entry
    found: Found

    @property
    def files(self) -> tuple[str, ...]:
        """The file, or the slices of the DICOM series."""
        return self.found.candidate.paths if self.found.candidate else (self.found.path,)

    @property
    def slices(self) -> list[str]:
        """The file names of the slices, without their endings."""
        return [Path(path).name.removesuffix(".dcm") for path in self.files]

    @cached_property
    def uids(self) -> dict[str, str]:
        """The study's and the series' UID, {} for a file that is not DICOM."""
        if self.found.candidate is None or self.found.candidate.format != "dicom":
            return {}
        names = ("StudyInstanceUID", "SeriesInstanceUID")
        with quiet():
            dataset = read_dataset(self.files[0], list(names))
            return {name: str(dataset.get(name, "")).strip() for name in names}


def stored_scans(
    source: str | Path, store_path: str | Path, *, key_file: str | Path = "", policy: ReadPolicy | None = None
) -> Iterator[StoredScan]:
    """Yield every scan under `source` that the store took, in the order in which it was found.

    source: as given to `fmct ingest`, from the same place: a series' pseudonym is a keyed hash of its path. key_file:
    the store's key, by default STORE.key beside it. Raises DataError when none of the store's series is found.
    """
    store_path = Path(store_path)
    record = read_json(store_path / RECORD, *STORE_FORMAT)
    key_path = Path(key_file) if key_file else store_path.with_name(store_path.name + ".key")
    key = load_key(key_path, expected=record["key_fingerprint"])
    entries = {entry.id: entry for entry in read_manifest(store_path)}
    policy = policy or ReadPolicy(modalities=tuple(record["modalities"]))
    matched = 0
    for found in find([source], policy, exclude=store_path):
        entry = entries.get(key.pseudonym("series", found.key))
        if entry is not None:
            matched += 1
            yield StoredScan(entry, found)
    if not matched:
        raise DataError(
            f"{source}: none of its scans is in {store_path} ({len(entries)} series). A series' pseudonym comes from "
            "its path: give the folder that was ingested, at the place where it lay then."
        )


def write_label_table(
    path: str | Path, targets: Sequence[str], rows: Sequence[tuple[Entry, Mapping[str, float | None]]]
) -> None:
    """Write labels as fine-tuning reads them: patient, series (pseudonyms) and a column a target; empty is unknown."""
    table = [
        {
            "patient": entry.patient,
            "series": entry.id,
            **{t: "" if values.get(t) is None else f"{values[t]:g}" for t in targets},
        }
        for entry, values in rows
    ]
    write_rows(path, ("patient", "series", *targets), table)

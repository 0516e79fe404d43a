"""Every series that is to be predicted: from files, folders, DICOM or a store, under the names that tables use."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from fmct import config as configuration
from fmct.errors import DataError
from fmct.inference.embed import scan_of_entry
from fmct.inference.native_grid import SourceGrid, source_grid
from fmct.io import Candidate, ReadPolicy, Rejected, read_candidate
from fmct.io.candidate import digest
from fmct.io.refusals import refusal
from fmct.preprocess import Preprocessing
from fmct.store import Entry, Store, is_store
from fmct.store.fingerprint import PseudonymKey
from fmct.store.patients import PatientNames
from fmct.store.sources import find
from fmct.tiling import Scan

MIN_SLICES = 16  # fewer are no volume that a 3D network was trained on
# What lies beside scans without being one of those that are asked for; the rest of the refusals are failures.
BESIDE = frozenset({"not-an-image", "archive", "wrong-modality", "scout", "derived-image", "label-map"})
_SCANS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".dcm")


@dataclass(frozen=True)
class Opened:
    """A series ready for a model: what is cut of it, its file's grid, and the DICOM files where it is DICOM."""

    scan: Scan
    source: SourceGrid
    dicom: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """One series by name. open(): reads it, raising DataError. path: where it lies, which may name a person."""

    patient: str
    series: str
    open: Callable[[], Opened]
    split: str = ""
    path: str = ""


@dataclass(frozen=True)
class Naming:
    """How scans are named in tables. names: patients from a table, the header or a pattern in the path. key: turns
    patients and series into a store's pseudonyms; without it they are named as the scans name them.
    """

    names: PatientNames
    key: PseudonymKey | None = None

    def of(self, key: str, name: str, header: str | None, plain: str) -> tuple[str, str]:
        """Return (patient, series) of a scan with its place as `key` (as ingest has it), relative `name` and PatientID.

        plain: what the series is called where nothing is pseudonymised.
        """
        named = self.names.of(name, header)
        if self.key is None:
            return (named or _stem(name)).strip() or plain, plain
        patient = self.key.pseudonym("patient", named) if named else self.key.pseudonym("series-patient", key)
        return patient, self.key.pseudonym("series", key)


def read_policy(modality: str, choices: Sequence[str] = (), *, min_slices: int = MIN_SLICES) -> ReadPolicy:
    """Return the policy that scans of one modality are read with: ReadPolicy's defaults, more slices, and `key=value`
    choices such as tilt=resample. Raises ConfigError.
    """
    tree = {"min_slices": min_slices, **configuration.read_tree([], choices)}
    return replace(configuration.build(ReadPolicy, tree, "--read"), modalities=(modality,))


def series_of(
    source: str | Path,
    preprocessing: Preprocessing,
    *,
    policy: ReadPolicy,
    naming: Naming,
    exclude: Path | None = None,
) -> Iterator[Series]:
    """Yield every series under `source`, a store, folder or file, in a fixed order.

    A file that cannot be a scan of the model's modality is left out where it lies beside others (see BESIDE); a scan
    that cannot be read is yielded, and opening it raises. policy: of files; a store's series were read by its own.
    exclude: a folder below it not to look into. Raises DataError
    when the source does not exist.
    """
    if is_store(source):
        yield from _of_store(Store.open(source), preprocessing)
        return
    believed = None if preprocessing.modality == "CT" else preprocessing.modality
    within = exclude is not None and exclude.resolve().is_relative_to(Path(source).resolve())
    for item in find([source], policy, exclude=exclude if exclude and within else Path(source) / ".none"):
        if item.candidate is not None:
            patient, series = naming.of(item.key, item.name, item.patient, item.candidate.key)
            opened = partial(_open_scan, item.candidate, preprocessing, policy, believed)
            yield Series(patient, series, opened, path=item.path)
        elif item.rejected is not None and not _beside(item.rejected):
            patient, series = naming.of(item.key, item.name, item.patient, f"file-{digest(item.key)}")
            yield Series(patient, series, partial(_refuse, item.rejected), path=item.path)


def _beside(item: Rejected) -> bool:
    """Return whether a file that is not taken is none of the scans that are asked for, rather than a broken one."""
    broken = item.code == "not-an-image" and item.path.lower().endswith(_SCANS)
    return item.code in BESIDE and not broken


def _of_store(store: Store, preprocessing: Preprocessing) -> Iterator[Series]:
    """Yield a store's series; they were judged when they were ingested, and models are trained on all of them."""
    with store:
        splits = store.splits()
        for entry in store.entries:
            if entry.modality == preprocessing.modality:
                opened = partial(_open_entry, store, entry, preprocessing)
                yield Series(entry.patient, entry.id, opened, split=splits.get(entry.id, ""))


def _open_entry(store: Store, entry: Entry, preprocessing: Preprocessing) -> Opened:
    scan = scan_of_entry(preprocessing, store, entry)
    return Opened(scan, source_grid(scan.shape, scan.affine, np.array(entry.original_affine), entry.facts))


def _open_scan(candidate: Candidate, preprocessing: Preprocessing, policy: ReadPolicy, believed: str | None) -> Opened:
    volume = read_candidate(candidate, policy, modality=believed)
    scan = preprocessing.scan(volume)
    original = np.asarray(volume.facts.get("original_affine", volume.affine))
    nifti = candidate.paths[0] if candidate.format == "nifti" else ""
    grid = source_grid(scan.shape, scan.affine, original, volume.facts, nifti=nifti)
    return Opened(scan, grid, candidate.paths if candidate.format == "dicom" else ())


def _refuse(item: Rejected) -> Opened:
    raise refusal(item.code, item.reason, **item.numbers)


def _stem(name: str) -> str:
    """Return a relative name without the suffix of a scan, its folders joined: of `a/b.nii.gz` a-b."""
    for suffix in sorted(_SCANS, key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    if not parts:
        raise DataError(f"{name!r}: not a name that a table can hold.")
    return "-".join(parts)

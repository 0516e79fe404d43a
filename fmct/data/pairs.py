"""Pairs of a store: the pairs table resolved to series, each pair judged, every rejection with its reason.

A pair that is dropped costs nothing but itself: the scan and the patient's label stay. Only a mask that was drawn on
the paired scan falls with the pair, since nothing says any more where it lies in the other one.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

import numpy as np

from fmct.data.pair_table import PairRow, read_pair_table
from fmct.errors import DataError
from fmct.registration.pair_quality import DROP, PairPolicy, PairQuality, Verdict, judge
from fmct.registration.warping import same_grid
from fmct.store.manifest import Entry
from fmct.store.reader import Store

log = logging.getLogger(__name__)
_FORMATS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Pair:
    """One scan of a store and its paired scan.

    paired: None where there is none or the pair was dropped. weight: 0 then. mask_falls: a mask of this scan was drawn
    on the paired one and must not be used. same_grid: both have the same voxel grid.
    """

    entry: Entry
    paired: Entry | None
    weight: float
    mask_falls: bool
    same_grid: bool
    verdict: Verdict
    row: PairRow


@dataclass(frozen=True)
class Pairs:
    """The pairs of a store by the id of the scan that is used alone.

    notes: what was dropped or weighed down, and why. paired_series: the ids of all series that are somebody's paired
    scan, dropped ones too: none of them is a scan of its own.
    """

    of: Mapping[str, Pair]
    notes: list[str] = field(default_factory=list)
    paired_series: frozenset[str] = frozenset()

    @property
    def accepted(self) -> list[Pair]:
        """The pairs that training may use, of any weight above 0."""
        return [pair for pair in self.of.values() if pair.paired is not None]


def read_pairs(
    path: str | Path,
    store: Store,
    *,
    policy: PairPolicy | None = None,
    resample: bool = False,
    splits: Mapping[str, str] | None = None,
) -> Pairs:
    """Return the pairs that a table gives the series of a store.

    Scans are named by series id, or by their path as ingested or its last parts (STORE.sources.csv). resample: a
    paired scan may lie on another grid of the same world; whoever reads it brings it onto the scan's. splits: {patient
    pseudonym: split}, to compare with a split that the table names. Raises DataError for a faulty table, a name that
    means no series or several, a pair across patients, a constant paired scan (a missing one is an empty cell, never
    zeros), and unless `resample`, unequal grids.
    """
    policy, path = policy or PairPolicy(), Path(path)
    names = SeriesNames(store)
    found: dict[str, Pair] = {}
    notes: list[str] = []
    others: set[str] = set()
    for row in read_pair_table(path, policy=policy):
        where = f"{path}: line {row.line}"
        entry = names.entry(row.nct, where)
        if entry.id in found:
            raise DataError(f"{where}: series {entry.id} has another row in line {found[entry.id].row.line}.")
        paired = names.entry(row.ctpa, where) if row.ctpa else None
        others |= {paired.id} if paired is not None else set()
        if splits and row.split and splits.get(entry.patient, row.split) != row.split:
            raise DataError(
                f"{where}: patient {row.name} is in the split {row.split} here and in {splits[entry.patient]} in the "
                "store's splits."
            )
        pair = _pair(row, entry, paired, policy, where)
        if paired is not None and not (pair.same_grid or resample or pair.paired is None):
            raise DataError(_unlike_grids(where, entry, paired))
        notes += _told(pair)
        found[entry.id] = pair
    for note in notes:
        log.warning("%s", note)
    both = sorted(others & set(found))
    if both:
        raise DataError(f"{path}: series {both[0]} is a paired scan in one row and a scan of its own in another.")
    return Pairs(found, notes, frozenset(others))


class SeriesNames:
    """Finds series of a store by id, or by path as ingested: whole, or its last parts; a DICOM series by its folder."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_path: dict[str, list[str]] = {}
        table = store.path.with_name(store.path.name + ".sources.csv")
        if table.is_file():
            self._read(table)

    def entry(self, name: str, where: str) -> Entry:
        """Return the series that `name` means. Raises DataError when it means none or several."""
        try:
            return self._store.entry(name)
        except DataError:
            ids = self._by_path.get(PurePath(name.replace("\\", "/")).as_posix(), [])
        if len(ids) == 1:
            return self._store.entry(ids[0])
        if ids:
            raise DataError(f"{where}: {name} means {len(ids)} series of the store; give more of its path, or its id.")
        raise DataError(
            f"{where}: {name} is no series of {self._store.path}: neither an id nor a path in "
            f"{self._store.path.name}.sources.csv beside it. Was it refused ({self._store.path / 'ledger.jsonl'})?"
        )

    def _read(self, table: Path) -> None:
        import csv

        known = {entry.id for entry in self._store.entries}
        with open(table, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("id") in known and row.get("file")]
        for row in rows:
            path = PurePath(row["file"])
            for place in (path,) if path.name.lower().endswith(_FORMATS) else (path, path.parent):
                for start in range(len(place.parts)):
                    ids = self._by_path.setdefault(PurePath(*place.parts[start:]).as_posix(), [])
                    if row["id"] not in ids:
                        ids.append(row["id"])


def _pair(row: PairRow, entry: Entry, paired: Entry | None, policy: PairPolicy, where: str) -> Pair:
    if paired is None:
        return Pair(entry, None, 0.0, False, False, Verdict(DROP, 0.0), row)
    if paired.patient != entry.patient:
        raise DataError(
            f"{where}: {row.nct} and {row.ctpa} belong to two patients of the store. Give both the same patient when "
            "they are ingested (patients=TABLE), or mend the row."
        )
    if paired.value_range[0] == paired.value_range[1]:
        raise DataError(
            f"{where}: the paired scan {row.ctpa} of patient {row.name} is constant ({paired.value_range[0]:g} "
            f"{paired.units} everywhere). A missing scan is an empty cell, never a volume of zeros."
        )
    verdict = judge(_known(row, entry, paired), policy)
    if verdict.decision != DROP and row.pair_weight is not None:
        verdict = replace(verdict, weight=row.pair_weight)
    dropped = verdict.decision == DROP or verdict.weight == 0
    return Pair(
        entry=entry,
        paired=None if dropped else paired,
        weight=0.0 if dropped else verdict.weight,
        mask_falls=not verdict.aligned and row.mask_is_inherited,
        same_grid=same_grid(entry.shape, np.array(entry.affine), paired.shape, np.array(paired.affine)),
        verdict=verdict,
        row=row,
    )


def _known(row: PairRow, entry: Entry, paired: Entry) -> PairQuality:
    """Return what the table and the manifest say of a pair."""
    quality = replace(row.quality, identical=row.quality.identical or entry.voxel_hash == paired.voxel_hash)
    if quality.overlap is None:
        quality = replace(quality, overlap=covered(entry.shape, np.array(entry.affine), paired.shape, paired.affine))
    return quality


def covered(
    shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: Sequence[Sequence[float]]
) -> float:
    """Return the share of a grid that lies inside another grid's extent, from 9³ points spread over it."""
    share = (np.arange(9) + 0.5) / 9
    index = np.stack(np.meshgrid(*(share * n - 0.5 for n in shape), indexing="ij"), -1).reshape(-1, 3)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    other = np.array(other_affine)
    there = np.linalg.solve(other[:3, :3], (world - other[:3, 3]).T).T
    inside = (there >= -0.5 - 1e-6) & (there <= np.array(other_shape) - 0.5 + 1e-6)
    return float(inside.all(axis=1).mean())


def _told(pair: Pair) -> list[str]:
    if not pair.row.ctpa or not pair.verdict.reasons:
        return []
    reasons = "; ".join(pair.verdict.reasons)
    if pair.paired is not None:
        return [f"patient {pair.row.name}: pair taken with weight {pair.weight:g}: {reasons}."]
    fell = " A mask drawn on the paired scan is left out with it." if pair.mask_falls else ""
    return [f"patient {pair.row.name}: pair dropped, scan and label kept: {reasons}.{fell}"]


def _unlike_grids(where: str, entry: Entry, paired: Entry) -> str:
    return (
        f"{where}: the paired scan lies on another voxel grid: shape {tuple(entry.shape)} and affine "
        f"{[list(r) for r in entry.affine]}, paired shape {tuple(paired.shape)} and affine "
        f"{[list(r) for r in paired.affine]}. Bring it onto the scan's grid first (python -m "
        "fmct.data.pair_preparation TABLE OUT), or let it be resampled (resample=true)."
    )

"""Which patients a probe is scored on: none that the encoder was pretrained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fmct.errors import DataError
from fmct.publish.facts import overlap
from fmct.randomness import permutation
from fmct.store.manifest import Entry

FOLDS = 5


@dataclass(frozen=True)
class Fold:
    """Patients that a probe is fitted on, and those that it is scored on."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Cohort:
    """The folds of a probe; `notes` say who was left out and what was not known."""

    folds: tuple[Fold, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def scored(self) -> tuple[str, ...]:
        """Every patient that is scored, once."""
        return tuple(patient for fold in self.folds for patient in fold.test)


def choose_patients(
    entries: Sequence[Entry],
    facts: Mapping[str, Any],
    *,
    test: Sequence[str] | None = None,
    strata: Mapping[str, Any] | None = None,
    seed: int = 0,
    folds: int = FOLDS,
) -> Cohort:
    """Return the folds over the patients of `entries`, given an encoder's training facts.

    test: the patients to score; all others train the probe, those of the pretraining corpus among them. Without it the
    patients that pretraining did not see are cross-validated, and the others are left out. strata: {patient: value}
    that the folds share evenly. A patient of the
    pretraining corpus is never scored: found by equal voxels of any of its series. Raises DataError when nobody is
    left, or no one to train on.
    """
    patients = sorted({entry.patient for entry in entries})
    shared = set(overlap(facts, entries))
    seen = {entry.patient for entry in entries if entry.id in shared}
    notes = []
    if not facts.get("corpus", {}).get("voxel_hashes"):
        notes.append("the encoder does not say which series it was pretrained on: an overlap cannot be excluded.")
    if test is None:
        fresh = [p for p in patients if p not in seen]
        cohort = _cross_validated(fresh, seen, strata or {}, seed=seed, folds=folds)
    else:
        cohort = _as_given(patients, seen, test)
    return Cohort(cohort.folds, [*notes, *cohort.notes])


def _cross_validated(fresh: list[str], seen: set[str], strata: Mapping[str, Any], *, seed: int, folds: int) -> Cohort:
    notes = [f"left out, since they were in pretraining: {_names(seen)}."] if seen else []
    if len(fresh) < 2:
        raise DataError(
            f"{len(fresh)} of {len(fresh) + len(seen)} patients were not in pretraining; fitting and scoring a "
            "probe needs at least two. Probe on other scans, or hold patients out of pretraining (fmct split)."
        )
    count = min(folds, len(fresh))
    order = [fresh[number] for number in permutation(len(fresh), seed, "probe-folds").tolist()]
    order.sort(key=lambda patient: str(strata.get(patient, "")))  # stable: the permutation stays within each stratum
    parts = [tuple(sorted(order[number::count])) for number in range(count)]
    return Cohort(tuple(Fold(tuple(p for p in fresh if p not in part), part) for part in parts), notes)


def _as_given(patients: list[str], seen: set[str], test: Sequence[str]) -> Cohort:
    unknown = sorted(set(test) - set(patients))
    if unknown:
        raise DataError(
            f"{_names(unknown)}: no such patient among the {len(patients)} that can be probed here (pseudonyms, "
            "as in the store's manifest; with --masks only those that have a mask)."
        )
    scored = tuple(sorted(set(test) - seen))
    train = tuple(p for p in patients if p not in set(test))
    notes = []
    if set(test) & seen:
        notes.append(f"not scored, since they were in pretraining: {_names(set(test) & seen)}.")
    if set(train) & seen:
        notes.append(
            f"{len(set(train) & seen)} of the {len(train)} patients that the probe is fitted on were in pretraining."
        )
    if not scored:
        raise DataError(
            f"all {len(set(test))} patients to score were in pretraining ({_names(test)}). Score others, or "
            "hold patients out of pretraining (fmct split)."
        )
    if not train:
        raise DataError("every patient is to be scored, so none is left to fit the probe on. Give fewer.")
    return Cohort((Fold(train, scored),), notes)


def _names(patients: Sequence[str] | set[str]) -> str:
    names = sorted(set(patients))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

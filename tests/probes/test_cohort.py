from dataclasses import dataclass

import pytest

from fmct.errors import DataError
from fmct.probes.cohort import choose_patients


@dataclass(frozen=True)
class Series:
    """What choose_patients asks of a store's entry."""

    id: str
    patient: str
    voxel_hash: str
    content_hash: str = ""
    modality: str = "CT"


ENTRIES = [Series(f"s{k}", f"p{k // 2:02d}", f"{k:064d}") for k in range(24)]


def facts(*numbers: int) -> dict:
    return {"corpus": {"voxel_hashes": [f"{k:064d}"[:16] for k in numbers] or ["f" * 16]}}


def entries(hashes: dict[int, str] | None = None) -> list:
    return [Series(e.id, e.patient, (hashes or {}).get(k, f"{k:x}".rjust(4, "a") * 16)) for k, e in enumerate(ENTRIES)]


def test_folds_hold_each_patient_once_and_never_on_both_sides() -> None:
    cohort = choose_patients(entries(), facts())
    assert sorted(cohort.scored) == sorted({e.patient for e in ENTRIES})
    for fold in cohort.folds:
        assert not set(fold.train) & set(fold.test)
        assert len(fold.train) + len(fold.test) == 12
    assert cohort.notes == []
    assert choose_patients(entries(), facts(), seed=1).folds != cohort.folds
    assert choose_patients(entries(), facts()).folds == cohort.folds


def test_strata_are_shared_evenly_by_folds() -> None:
    rare = {"p01": 1, "p04": 1, "p07": 1, "p08": 1}
    for seed in range(10):
        cohort = choose_patients(entries(), facts(), strata=rare, folds=4, seed=seed)
        assert [sum(p in rare for p in fold.test) for fold in cohort.folds] == [1, 1, 1, 1]


def test_a_patient_of_pretraining_is_found_by_voxels_and_left_out() -> None:
    seen = "b" * 64
    cohort = choose_patients(entries({5: seen}), {"corpus": {"voxel_hashes": [seen[:16]]}})
    assert "p02" not in cohort.scored
    assert all("p02" not in fold.train for fold in cohort.folds)
    assert any("p02" in note for note in cohort.notes)


def test_given_patients_are_scored_unless_pretraining_saw_them() -> None:
    hashes = {4: "b" * 64, 0: "c" * 64}
    known = {"corpus": {"voxel_hashes": ["b" * 16, "c" * 16]}}
    cohort = choose_patients(entries(hashes), known, test=["p02", "p03"])
    assert cohort.scored == ("p03",)
    assert "p00" in cohort.folds[0].train
    assert any("not scored" in note and "p02" in note for note in cohort.notes)
    assert any("1 of the 10 patients" in note for note in cohort.notes)


def test_nobody_left_is_an_error() -> None:
    hashes = {k: "b" * 64 for k in range(24)}
    known = {"corpus": {"voxel_hashes": ["b" * 16]}}
    with pytest.raises(DataError, match="0 of 12 patients were not in pretraining"):
        choose_patients(entries(hashes), known)
    with pytest.raises(DataError, match="all 1 patients to score were in pretraining"):
        choose_patients(entries(hashes), known, test=["p02"])
    with pytest.raises(DataError, match="no such patient"):
        choose_patients(entries(), facts(), test=["p02", "nobody"])
    with pytest.raises(DataError, match="none is left to fit"):
        choose_patients(entries(), facts(), test=sorted({e.patient for e in ENTRIES}))


def test_an_encoder_that_says_nothing_is_noted() -> None:
    assert "cannot be excluded" in choose_patients(entries(), {}).notes[0]

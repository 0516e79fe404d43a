"""Folds, nested draws, and the control's ellipsoid."""

import numpy as np
import pytest

from fmct.errors import DataError
from fmct.experiment.pet_ct import (
    fold_of,
    inscribed_ellipsoid,
    prepare_pet_ct,
    training_patients,
    write_fold,
)
from fmct.table_files import read_rows

PATIENTS = [f"STS_{number:03d}" for number in range(30)]


def test_every_patient_is_tested_once_and_draws_are_nested():
    tested = [p for fold in range(5) for p in PATIENTS if fold_of(PATIENTS, p) == fold]
    assert sorted(tested) == PATIENTS
    small, large, everyone = (training_patients(PATIENTS, 1, count=n, seed=3) for n in (2, 10, 0))
    assert (len(small), len(large), len(everyone)) == (2, 10, 24)
    assert set(small) < set(large) < set(everyone)
    assert not [p for p in everyone if fold_of(PATIENTS, p) == 1]
    assert training_patients(PATIENTS, 1, count=2, seed=4) != small
    with pytest.raises(DataError, match="24 training patients"):
        training_patients(PATIENTS, 1, count=25, seed=0)


def test_a_folds_table_names_every_patient(tmp_path):
    write_fold(tmp_path / "fold.csv", PATIENTS, 2, count=5, seed=0)
    splits = {row["patient"]: row["split"] for row in read_rows(tmp_path / "fold.csv")}
    assert list(splits) == PATIENTS
    assert [list(splits.values()).count(name) for name in ("train", "test", "left-out")] == [5, 6, 19]


def test_the_ellipsoid_touches_the_box_minus_its_margin():
    inside = inscribed_ellipsoid((60, 100, 80), (2.0, 1.0, 1.5), margin_mm=20)
    places = np.argwhere(inside)
    for axis, (sides, spacing) in enumerate(zip((60, 100, 80), (2.0, 1.0, 1.5), strict=True)):
        reach = (places[:, axis].max() - places[:, axis].min() + 1) * spacing
        assert reach == pytest.approx(sides * spacing - 40, abs=2 * spacing)
    volume = 4 / 3 * np.pi * 40 * 30 * 40
    assert inside.sum() * 3.0 == pytest.approx(volume, rel=0.02)
    assert inscribed_ellipsoid((10, 10, 10), (1, 1, 1)).sum() <= 8  # no room for the margin


def test_a_folder_of_other_things_is_refused(tmp_path):
    with pytest.raises(DataError, match="STS_NNN"):
        prepare_pet_ct(tmp_path, tmp_path / "out")

"""Labelled data is checked before anything runs. T4 (unknown labels), G1, G6, G7 of the acceptance checks."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmct.data.cohort import CohortConfig, few_shot, overlap, read_cohort, refuse_overlap
from fmct.data.label_table import read_label_table
from fmct.data.mask_bank import MaskOptions
from fmct.errors import ConfigError, DataError
from fmct.phantoms.body import axial_affine
from tests.data.labelled_store import (
    PATIENTS,
    POSITIVE,
    SHAPE,
    SPACING,
    SPLITS,
    LabelledStore,
    changed,
    lesion,
    make_labelled_store,
    table,
    write,
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> LabelledStore:
    return make_labelled_store(tmp_path_factory.mktemp("labelled"))


def test_a_cohort_knows_labels_masks_and_splits(labelled: LabelledStore) -> None:
    cohort = read_cohort(labelled.config)
    named = {labelled.entry(patient).id: patient for patient in PATIENTS}
    found = {named[sample.entry.id]: sample for sample in cohort.samples}
    assert {name: sample.split for name, sample in found.items()} == SPLITS
    for name, sample in found.items():
        positive = name in POSITIVE
        assert sample.labels == (float(positive),)
        assert sample.has_mask
        assert (sample.mask is not None, sample.mask_known_empty) == (positive, not positive)
        assert sample.lesion_mm3 == pytest.approx(64 * 12 if positive else 0)
    assert len(cohort.of("train")) == 4
    with pytest.raises(DataError, match=r"split 'tset'; splits with some: test, train"):
        cohort.of("tset")


def test_pseudonyms_and_paths_name_the_same_series(labelled: LabelledStore, tmp_path: Path) -> None:
    entries = {name: labelled.entry(name) for name in PATIENTS}
    by_pseudonym = [("patient", "series", "pe")]
    by_pseudonym += [(entries[n].patient, entries[n].id, str(int(n in POSITIVE))) for n in PATIENTS]
    by_file = [("file", "pe"), *((f"{n}/ct.nii.gz", int(n in POSITIVE)) for n in PATIENTS)]
    expected = [sample.labels for sample in read_cohort(labelled.config).samples]
    for number, rows in enumerate((by_pseudonym, by_file)):
        labels = table(tmp_path / f"{number}.csv", rows)
        assert [s.labels for s in read_cohort(changed(labelled.config, labels=labels)).samples] == expected


def test_an_empty_cell_is_unknown_and_never_negative(labelled: LabelledStore, tmp_path: Path) -> None:
    """T4: no label, and no mask known to be empty either."""
    labels = table(tmp_path / "l.csv", [("patient", "pe"), ("P1", 1), ("P2", 1), ("P3", 0), ("P4", ""), ("P6", 0)])
    cohort = read_cohort(changed(labelled.config, labels=labels))
    unknown = next(s for s in cohort.samples if s.patient == labelled.entry("P4").patient)
    assert math.isnan(unknown.labels[0])
    assert not unknown.has_mask
    assert not unknown.labelled


def test_a_table_may_be_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = pyarrow.table({"patient": ["a", "b", "c"], "pe": [1.0, None, 0.0]})
    parquet.write_table(columns, tmp_path / "l.parquet")
    rows = read_label_table(tmp_path / "l.parquet", ["pe"])
    assert [row.labels["pe"] for row in rows][::2] == [1.0, 0.0]
    assert math.isnan(rows[1].labels["pe"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("patient;pe\nP1;1\n", "semicolons"),
        ("patient,pe\nP1,maybe\nP2,1\nP3,2\n", r"2 faults.*line 2: pe is 'maybe'.*line 4: pe is '2'"),
        ("patient,pe\nP1,-1\n", "a label is 0, 1 or, when unknown, an empty cell"),
        ("patient,pe\nP1,1\nP2,0\nP1,1\n", "line 4: patient P1 stands in line 2 already"),
        ("patient,pe\n P1,1\n", "has spaces around it"),
        ("patient,pe\n,1\n", "neither patient nor series"),
        ("patient,lung\nP1,1\n", "no column pe; its columns are patient, lung"),
        ("name,pe\nP1,1\n", "no column patient or series"),
        ("patient,pe ,pe\nP1,1,1\n", "spaces or a byte-order mark"),
        ("patient,series,pe,split\nP1,a,1,train\nP1,b,1,test\n", "patient P1 is in two splits: train in line 2"),
        ("patient,pe\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_faulty_label_tables_say_where(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_label_table(tmp_path / "l.csv", ["pe"])


def test_a_byte_order_mark_is_read_past_where_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("patient,pe\nP1,1\n", encoding="utf-8-sig")
    assert read_label_table(tmp_path / "l.csv", ["pe"])[0].patient == "P1"
    for name, content in (("twice", b"\xef\xbb\xbf\xef\xbb\xbfpatient,pe\nP1,1\n"), ("utf16", b"\xff\xfep\0a\0")):
        (tmp_path / f"{name}.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"byte-order mark|not readable"):
            read_label_table(tmp_path / f"{name}.csv", ["pe"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("patient", "pe"), ("P9", 1)], "none of its 1 rows is about a series"),
        ([("patient", "pe"), ("P1", 1), ("P2", 1), ("P3", 1)], "no series of the split train is negative|1, but"),
        ([("patient", "pe"), ("P1", 0), ("P2", 1), ("P3", 0)], r"G?.*pe is 0, but ct_pe.nii.gz holds 768 mm³"),
        ([("patient", "file", "pe"), ("P1", "P2/ct.nii.gz", 1)], "does not belong to patient P1"),
        ([("file", "pe"), ("P1/ct.nii.gz", 1), ("ct.nii.gz", 1)], "means 6 series"),
        ([("patient", "file", "pe"), ("P3", "", 0), ("P3", "P3/ct.nii.gz", 1)], "line 3 says 1, its patient's line 2"),
    ],
)
def test_tables_that_contradict_the_store_or_themselves(
    rows: list[tuple[object, ...]], message: str, labelled: LabelledStore, tmp_path: Path
) -> None:
    """G7: a mask on a label-0 patient among them."""
    if "negative|" in message:  # one class only, for a target that no mask shows
        config = changed(labelled.config, masks="", labels=table(tmp_path / "l.csv", rows))
    else:
        config = changed(labelled.config, labels=table(tmp_path / "l.csv", rows))
    with pytest.raises(DataError, match=message):
        read_cohort(config)


def test_a_patient_in_two_splits_is_refused(labelled: LabelledStore, tmp_path: Path) -> None:
    """G7: by name, by pseudonym, and by another name for the same patient."""
    pseudonym = labelled.entry("P1").patient
    for again in ("P1", pseudonym):
        splits = table(tmp_path / "s.csv", [("patient", "split"), *SPLITS.items(), (again, "test")])
        with pytest.raises(DataError, match=rf"patient {pseudonym} is in two splits: train in line 2, test in line 8"):
            read_cohort(changed(labelled.config, splits=splits))
    with pytest.raises(DataError, match="no patient has a split"):
        read_cohort(changed(labelled.config, splits=""))


def test_masks_off_the_grid_or_of_the_wrong_kind_are_refused(labelled: LabelledStore, tmp_path: Path) -> None:
    """G6, G1: shape mismatch, another grid, a mask outside the scan, a positive patient's empty mask."""
    affine = axial_affine(SHAPE, SPACING)

    def read(mask: np.ndarray, grid: np.ndarray = affine, **options: bool) -> None:
        write(tmp_path / "m" / "P1" / "ct_pe.nii.gz", mask, grid)
        read_cohort(changed(labelled.config, masks=tmp_path / "m", mask_options=MaskOptions(**options)))

    half = affine.copy()
    half[:3, 3] += affine[:3, :3] @ (0.5, 0.5, 0.5)
    with pytest.raises(DataError, match=rf"patient {labelled.entry('P1').patient}.*off the scan's voxel grid"):
        read(lesion(0), half)
    read(lesion(0), half, resample=True)
    away = affine.copy()
    away[:3, 3] += affine[:3, :3] @ (0, 0, SHAPE[2])
    with pytest.raises(DataError, match="of its voxels are outside the scan"):
        read(lesion(0), away)
    with pytest.raises(DataError, match="inside the scan: not its mask"):
        read(lesion(0), away @ np.diag([1, 1, 1.01, 1]), resample=True)
    with pytest.raises(DataError, match="pe is 1, but its mask is empty"):
        read(np.zeros(SHAPE, np.uint8))
    cut = affine.copy()
    cut[:3, 3] += affine[:3, :3] @ (2, 3, 4)
    read(lesion(0)[2:20, 3:20, 4:20], cut)


def test_masks_alone_make_a_cohort(labelled: LabelledStore) -> None:
    cohort = read_cohort(changed(labelled.config, labels="", targets=["gtv"]))
    known = [sample.labels[0] for sample in cohort.samples if sample.mask is not None]
    assert known == [1.0, 1.0, 1.0]
    assert all(math.isnan(s.labels[0]) and not s.has_mask for s in cohort.samples if s.mask is None)


def test_settings_that_contradict_each_other(labelled: LabelledStore) -> None:
    for changes in (
        {"store": ""},
        {"labels": "", "masks": ""},
        {"targets": []},
        {"targets": ["pe", "pe"]},
        {"mask_target": "lung"},
        {"labels": "", "targets": ["a", "b"]},
    ):
        with pytest.raises(ConfigError):
            read_cohort(changed(labelled.config, **changes))
    assert CohortConfig().targets == []


def test_few_shots_are_nested_and_keyed_by_the_seed(labelled: LabelledStore) -> None:
    cohort = read_cohort(labelled.config)
    one, two = (set(few_shot(cohort, n, seed=3).patients("train")) for n in (1, 2))
    assert one < two
    assert len(two) == 2
    assert few_shot(cohort, 2, seed=3).patients("test") == cohort.patients("test")
    assert len({frozenset(few_shot(cohort, 2, seed=s).patients("train")) for s in range(12)}) > 2
    balanced = few_shot(cohort, 1, seed=0, target="pe")
    assert sorted(sample.labels[0] for sample in balanced.of("train")) == [0.0, 1.0]
    with pytest.raises(ConfigError, match="3 positive patients of the split train were asked for; it has 2"):
        few_shot(cohort, 3, seed=0, target="pe")


def test_an_encoder_that_saw_test_patients_is_refused(labelled: LabelledStore) -> None:
    cohort = read_cohort(labelled.config)
    test = labelled.entry("P5")
    facts = {"corpus": {"voxel_hashes": [test.voxel_hash[:16], labelled.entry("P1").voxel_hash[:16]]}}
    assert overlap(cohort, facts) == [test.patient]
    with pytest.raises(DataError, match=f"pretrained on 1 of the 2 patients.*{test.patient}.*on_overlap=report"):
        refuse_overlap(cohort, facts)
    assert "TRANSDUCTIVE" in refuse_overlap(cohort, facts, on_overlap="report")[0]
    assert refuse_overlap(cohort, {"corpus": {"voxel_hashes": ["0" * 16]}}) == []
    assert "cannot be excluded" in refuse_overlap(cohort, {})[0]


def test_masks_are_decoded_once_and_kept(labelled: LabelledStore, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = read_cohort(labelled.config)
    monkeypatch.setattr("fmct.data.mask_bank.read_mask", lambda *a, **k: pytest.fail("decoded again"))
    again = read_cohort(labelled.config)
    assert [s.lesion_mm3 for s in again.samples] == [s.lesion_mm3 for s in cohort.samples]
    kept = sorted((labelled.root / "store.masks").iterdir())
    kept[0].write_bytes(b"damaged")
    monkeypatch.undo()
    assert [s.lesion_mm3 for s in read_cohort(labelled.config).samples] == [s.lesion_mm3 for s in cohort.samples]


def test_a_mask_keeps_its_volume_at_every_level(labelled: LabelledStore) -> None:
    cohort = read_cohort(labelled.config)
    sample = next(s for s in cohort.samples if s.mask is not None)
    assert sample.mask is not None
    for number, level in enumerate(sample.entry.levels):
        share = cohort.masks.read(sample.entry, sample.mask, number, (0, 0, 0), level.shape) / 32767
        assert share.sum() * np.prod(level.spacing_mm) == pytest.approx(sample.lesion_mm3, rel=0.01)
        part = cohort.masks.read(sample.entry, sample.mask, number, (1, 2, 3), tuple(n - 3 for n in level.shape))
        inner = tuple(slice(a, a + n) for a, n in zip((1, 2, 3), part.shape, strict=True))
        assert np.array_equal(part, np.rint(share * 32767).astype(np.int16)[inner])


def test_equal_voxels_in_two_splits_are_a_leak(labelled: LabelledStore) -> None:
    from fmct.data.cohort_checks import check_samples

    cohort = read_cohort(labelled.config)
    first = cohort.samples[0]
    twin = replace(first, split="test", entry=replace(first.entry, id="twin"))
    with pytest.raises(DataError, match=f"the same voxels in two splits: {first.entry.id} in train, twin in test"):
        check_samples(cohort.store, [*cohort.samples, twin], cohort.targets, 0, where="labels")

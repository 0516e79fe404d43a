"""The pairs table and its pairs: G1, G2, G7, G8 and T3 of the acceptance checks."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fmct.data.pair_table import read_pair_table, write_pair_table
from fmct.data.pairs import Pairs, covered, read_pairs
from fmct.errors import DataError
from fmct.phantoms.body import axial_affine
from fmct.store.manifest import Entry, Level


def entry(
    name: str, patient: str, *, affine: np.ndarray | None = None, shape: tuple[int, int, int] = (20, 30, 30)
) -> Entry:
    grid = axial_affine(shape, (3, 2, 2)) if affine is None else affine
    rows = tuple(tuple(float(v) for v in row) for row in grid)
    return Entry(
        id=name,
        patient=patient,
        modality="CT",
        units="HU",
        shape=shape,
        spacing_mm=(3, 2, 2),
        affine=rows,
        original_affine=rows,
        value_range=(-1000, 900),
        content_hash=f"c-{name}",
        voxel_hash=f"v-{name}",
        levels=(Level((1, 1, 1), shape, (3, 2, 2)),),
    )


@dataclass(frozen=True)
class Shelf:
    """Stands for a store: its path and its entries."""

    path: Path
    entries: tuple[Entry, ...]

    def entry(self, name: str) -> Entry:
        for item in self.entries:
            if item.id == name:
                return item
        raise DataError(f"no entry {name}")


def shelf(folder: Path, *more: Entry) -> Shelf:
    entries = (entry("n1", "p1"), entry("c1", "p1"), entry("n2", "p2"), entry("c2", "p2"), entry("n3", "p3"), *more)
    (folder / "store.sources.csv").write_text(
        "id,patient,file\n"
        + "".join(f"{e.id},{e.patient},/data/{e.patient}/{e.id}/scan.nii.gz\n" for e in entries if e.id[0] in "nc")
        + "gone,p9,/data/p9/scan.nii.gz\n"
    )
    return Shelf(folder / "store", entries)


def read(folder: Path, text: str, *more: Entry, **options: object) -> Pairs:
    table = folder / "pairs.csv"
    table.write_text(text)
    return read_pairs(table, shelf(folder, *more), **options)  # type: ignore[arg-type]


def test_pairs_are_found_by_id_and_by_path(tmp_path: Path) -> None:
    pairs = read(
        tmp_path,
        "series,paired,minutes,registration\nn1,c1,30,given\np2/n2/scan.nii.gz,c2/scan.nii.gz,200,given\nn3,,,\n",
    )
    assert {name: (p.paired.id if p.paired else None, p.weight) for name, p in pairs.of.items()} == {
        "n1": ("c1", 1.0),
        "n2": ("c2", 0.6),
        "n3": (None, 0.0),
    }
    assert len(pairs.accepted) == 2
    assert pairs.paired_series == {"c1", "c2"}
    assert pairs.of["n1"].same_grid
    assert len(pairs.notes) == 1
    assert "0.6" in pairs.notes[0]
    assert "200 minutes" in pairs.notes[0]


def test_a_name_that_means_nothing_or_too_much_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: nowhere is no series.*sources\.csv"):
        read(tmp_path, "nct,ctpa\nnowhere,c1\n")
    with pytest.raises(DataError, match=r"scan\.nii\.gz means 5 series"):
        read(tmp_path, "nct,ctpa\nscan.nii.gz,c1\n")
    with pytest.raises(DataError, match="has another row in line 2"):
        read(tmp_path, "nct,ctpa\nn1,c1\np1/n1/scan.nii.gz,c1\n")
    with pytest.raises(DataError, match="two patients"):
        read(tmp_path, "nct,ctpa\nn1,c2\n")
    with pytest.raises(DataError, match="scan of its own"):
        read(tmp_path, "nct,ctpa\nn1,c1\nc1,\n")


def test_g1_unequal_grids_are_named_unless_they_may_be_resampled(tmp_path: Path) -> None:
    other = entry("c3", "p3", affine=axial_affine((40, 20, 20), (2, 3, 3)), shape=(40, 20, 20))
    text = "nct,ctpa,minutes\nn3,c3,10\n"
    with pytest.raises(DataError, match=r"\(20, 30, 30\).*affine.*\(40, 20, 20\).*affine.*resample"):
        read(tmp_path, text, other)
    pair = read(tmp_path, text, other, resample=True).of["n3"]
    assert pair.paired is other
    assert not pair.same_grid


def test_g2_disjoint_fields_of_view_drop_the_pair_and_its_mask_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    far = axial_affine((20, 30, 30), (3, 2, 2))
    far[2, 3] += 500
    text = "patient,nct,ctpa,mask,annotated,label,minutes\nAnna,n3,c3,m.nii.gz,{},1,10\n"
    for phase, falls in (("ctpa", True), ("nct", False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            pairs = read(tmp_path, text.format(phase), entry("c3", "p3", affine=far))
        pair = pairs.of["n3"]
        assert pair.entry.id == "n3"
        assert (pair.paired, pair.weight, pair.mask_falls) == (None, 0.0, falls)
        assert pair.row.label == 1
        assert len(caplog.records) == 1
        assert "patient Anna" in caplog.text
        assert ("A mask drawn on the paired scan" in caplog.text) == falls
        assert pairs.paired_series == {"c3"}


def test_g2_a_failed_or_poor_registration_counts_from_the_table(tmp_path: Path) -> None:
    head = "nct,ctpa,minutes,lung_dice,vessel_dice,min_jacobian,failure\n"
    for cells in ("0.9,0.5,0.4,", "0.9,0.8,-0.1,", ",,,the optimiser stopped"):
        pair = read(tmp_path, f"{head}n1,c1,10,{cells}\n").of["n1"]
        assert pair.paired is None
        assert pair.mask_falls  # nobody said that a mask was drawn on this scan
    assert read(tmp_path, f"{head}n1,c1,10,0.95,0.8,0.4,\n").of["n1"].weight == 1.0


def test_g8_equal_voxels_or_no_contrast_warn_and_weigh_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = replace(entry("c3", "p3"), voxel_hash="v-n3")
    with caplog.at_level(logging.WARNING):
        pair = read(tmp_path, "nct,ctpa,minutes\nn3,c3,1\n", copy).of["n3"]
    assert (pair.paired, pair.weight, pair.mask_falls) == (None, 0.0, False)
    assert "same voxels" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pair = read(tmp_path, "nct,ctpa,minutes,heart_hu\nn1,c1,1,80\n").of["n1"]
    assert (pair.paired, pair.weight, pair.mask_falls) == (None, 0.0, False)
    assert "80 HU" in caplog.text


def test_t3_a_constant_paired_scan_is_no_scan(tmp_path: Path) -> None:
    zeros = replace(entry("c3", "p3"), value_range=(0.0, 0.0))
    with pytest.raises(DataError, match=r"constant \(0 HU everywhere\).*empty cell"):
        read(tmp_path, "nct,ctpa\nn3,c3\n", zeros)


def test_a_stated_weight_replaces_the_tier_but_not_the_verdict(tmp_path: Path) -> None:
    pairs = read(tmp_path, "nct,ctpa,minutes,pair_weight,vessel_dice\nn1,c1,300,2.5,0.9\nn2,c2,10,2.5,0.1\n")
    assert pairs.of["n1"].weight == 2.5
    assert pairs.of["n2"].weight == 0.0
    assert read(tmp_path, "nct,ctpa,minutes,pair_weight\nn1,c1,10,0\n").of["n1"].paired is None


def test_g7_every_faulty_row_is_listed(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(
        "patient,nct,ctpa,mask,annotated,label,minutes,split,registration\n"
        "A,a1,a2,,,1,30,train,given\n"
        "A,a3,,,,1,,test,\n"
        "B,b1,b2,m.nii.gz,ctpa,0,30,train,given\n"
        "C,c1,c2,,,0,-90,train,given\n"
        "D,d1,d2,,,2,soon,train,magic\n"
        "E,e1,e2,m.nii.gz,,1,30,train,given\n"
        "F,a1,,,ctpa,0,,train,\n"
        "G,,g2,,,1,,train,\n"
        "H,h1,,,,1,,train,\n"
        "H,h2,,,,0,,train,\n"
    )
    with pytest.raises(DataError) as caught:
        read_pair_table(table)
    told = str(caught.value)
    for fault in (
        "line 3: patient A has two splits: train in line 2, test in line 3",
        "line 4: patient B has label 0 and the mask m.nii.gz",
        "line 5: patient C: the paired scan was made 90 minutes before",
        "line 6: label is '2'",
        "line 6: minutes is 'soon'",
        "line 6: registration is 'magic'",
        "line 7: annotated is empty",
        "line 8: the scan a1 has another row in line 2",
        "line 8: the mask was drawn on the paired scan, but no paired scan is named",
        "line 9: no scan is named",
        "line 11: patient H has two labels",
    ):
        assert fault in told, fault
    assert "line 2:" not in told.split("rows.", 1)[1].replace("in line 2", "")


def test_a_table_without_its_columns_is_explained_and_semicolons_too(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("patient,scan\nA,a1\n")
    with pytest.raises(DataError, match="columns nct and ctpa"):
        read_pair_table(table)
    table.write_text("nct;ctpa\na;b\n")
    with pytest.raises(DataError, match="semicolons"):
        read_pair_table(table)
    table.write_text("\ufeffnct,ctpa,label,minutes\n a ,b,-1,n/a\n", encoding="utf-8")
    (row,) = read_pair_table(table)
    assert (row.nct, row.label, row.quality.minutes) == ("a", None, None)


def test_a_written_table_is_read_back(tmp_path: Path) -> None:
    row = {"nct": "a", "ctpa": "b", "minutes": 12.5, "identical": True, "vessel_dice": None, "note": "kept"}
    write_pair_table(tmp_path / "pairs.csv", [row])
    (found,) = read_pair_table(tmp_path / "pairs.csv")
    assert (found.quality.minutes, found.quality.identical, found.quality.vessel_dice) == (12.5, True, None)
    assert "note" in (tmp_path / "pairs.csv").read_text().splitlines()[0]


def test_a_split_that_contradicts_the_store_is_an_error(tmp_path: Path) -> None:
    text = "patient,nct,ctpa,split\nA,n1,,train\n"
    assert read(tmp_path, text, splits={"p1": "train"}).of["n1"].row.split == "train"
    with pytest.raises(DataError, match="split train here and in test"):
        read(tmp_path, text, splits={"p1": "test"})


def test_the_share_of_a_field_of_view_that_another_covers() -> None:
    a = axial_affine((20, 20, 20), (2, 2, 2))
    b = a.copy()
    b[2, 3] += 20  # half its height
    assert covered((20, 20, 20), a, (20, 20, 20), a.tolist()) == 1.0
    assert abs(covered((20, 20, 20), a, (20, 20, 20), b.tolist()) - 0.5) < 0.06

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from fmct.cli import main
from fmct.data.cohort import CohortConfig, read_cohort
from fmct.datasets.luna16 import read_annotations, read_candidates, write_cohort
from fmct.datasets.luna16_lungs import FOLDER
from fmct.datasets.stored_scans import stored_scans
from fmct.errors import ConfigError, DataError
from fmct.io.masks import read_mask
from fmct.store import Store
from fmct.store.ingest import IngestConfig, ingest
from fmct.table_files import read_rows
from tests.datasets.luna_scans import DIAMETER, DOUBTFUL, NODULE, SPACING, TINY, write_lungs, write_scan


@pytest.fixture(scope="module")
def luna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("luna")
    for subset, uid, turned in ((0, "1.3.6.1", False), (8, "1.3.6.2", True), (9, "1.3.6.3", False)):
        write_scan(folder / f"subset{subset}" / f"{uid}.mhd", subset, turned=turned)
    rows = [("1.3.6.1", NODULE, DIAMETER), ("1.3.6.2", NODULE, DIAMETER), ("1.3.6.1", TINY, 0.5)]
    text = "".join(f"{uid},{x},{y},{z},{d}\n" for uid, (x, y, z), d in rows)
    (folder / "annotations.csv").write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{text}")
    x, y, z = DOUBTFUL
    text = f"1.3.6.1,{x},{y},{z},-1\n1.3.6.9,{x},{y},{z},6\n"
    (folder / "annotations_excluded.csv").write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{text}")
    text = f"1.3.6.3,{x},{y},{z},0\n1.3.6.1,{NODULE[0]},{NODULE[1]},{NODULE[2]},1\n"
    (folder / "candidates_V2.csv").write_text(f"seriesuid,coordX,coordY,coordZ,class\n{text}")
    ingest([folder], folder.parent / f"{folder.name}-store", config=IngestConfig(workers=1))
    return folder


def store_of(luna: Path) -> Path:
    return luna.parent / f"{luna.name}-store"


def entries_of(luna: Path) -> dict[str, str]:
    """Return {series UID: entry id}."""
    return {Path(scan.found.path).stem: scan.entry.id for scan in stored_scans(luna, store_of(luna))}


def test_nodules_become_balls_on_the_scans_own_voxels(luna: Path, tmp_path: Path) -> None:
    """World coordinates in mm, LPS to RAS, whichever way the file's axes run; held against the blob in the voxels."""
    told = write_cohort(luna, luna, store_of(luna), tmp_path)
    assert "3 series (train 1, validation 1, test 1), 2 with nodules, 1 with regions to ignore" in told[0]
    cohort = read_cohort(
        CohortConfig(
            store=str(store_of(luna)),
            labels=str(tmp_path / "labels.csv"),
            targets=["nodule"],
            masks=str(tmp_path / "masks"),
        )
    )
    names = {entry: uid for uid, entry in entries_of(luna).items()}
    for sample in cohort.samples:
        uid, volume = names[sample.entry.id], cohort.store.volume(sample.entry)
        assert sample.labels == (float(uid != "1.3.6.3"),)
        assert sample.mask_known_empty == (uid == "1.3.6.3")
        if sample.mask is None:
            continue
        inside = cohort.masks.read(sample.entry, sample.mask, 0, (0, 0, 0), volume.shape) > 0
        world = volume.world(np.moveaxis(np.indices(volume.shape), 0, -1))
        expected = np.linalg.norm(world - np.array([-NODULE[0], -NODULE[1], NODULE[2]]), axis=-1) <= DIAMETER / 2
        if uid == "1.3.6.1":  # the smallest nodule lies between voxels and still has one
            tiny = np.linalg.norm(world - np.array([-TINY[0], -TINY[1], TINY[2]]), axis=-1)
            expected[np.unravel_index(tiny.argmin(), volume.shape)] = True
        np.testing.assert_array_equal(inside, expected)
        assert volume.voxels[np.linalg.norm(world - np.array([48, -49, -188]), axis=-1) <= 3.9].min() == 60
    cohort.store.close()


def test_tables_hold_points_in_ras_and_regions_to_ignore(luna: Path, tmp_path: Path) -> None:
    write_cohort(luna / "annotations.csv", luna, store_of(luna), tmp_path, splits={"test": "subset0"})
    names = entries_of(luna)
    points = read_rows(tmp_path / "nodules.csv")
    assert len(points) == 3
    first = next(row for row in points if row["series"] == names["1.3.6.2"])
    assert [float(first[n]) for n in ("x_mm", "y_mm", "z_mm", "diameter_mm")] == [48.0, -49.0, -188.0, 8.0]
    kinds = {row["series"]: row["nodule"] for row in read_rows(tmp_path / "candidates.csv")}
    assert kinds == {names["1.3.6.3"]: "0", names["1.3.6.1"]: "1"}
    rows = {row["series"]: row for row in read_rows(tmp_path / "labels.csv")}
    assert [rows[names[uid]]["split"] for uid in ("1.3.6.1", "1.3.6.2", "1.3.6.3")] == ["test", "train", "train"]
    assert rows[names["1.3.6.2"]]["subset"] == "subset8"
    (ignored,) = (tmp_path / "ignore").iterdir()
    assert ignored.name == f"{names['1.3.6.1']}.nii.gz"
    volume = np.count_nonzero(np.asanyarray(nib.load(ignored).dataobj)) * np.prod(SPACING)
    assert volume == pytest.approx(np.pi / 6 * 10**3, rel=0.15)  # a diameter of −1 counts as 10 mm


def test_the_command_writes_them(luna: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(path) for path in (luna, luna, store_of(luna), tmp_path / "out")]
    assert main(["curate", "luna16", *arguments, "--split", "test=subset8", "--split", "validation=subset0"]) == 0
    assert "validation 1" in capsys.readouterr().out
    assert (tmp_path / "out" / "labels.csv").is_file()
    with Store.open(store_of(luna)) as store:
        assert len(store.entries) == 3


def test_tables_that_cannot_be_are_refused(luna: Path, tmp_path: Path) -> None:
    head = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    for text, error in (
        ("seriesuid,x,y,z\n1,2,3,4\n", "no column coordX, coordY"),
        (head + "1.3.6.1,a,2,3,4\n", "line 2: .*a number that is none"),
        (head + "1.3.6.1,1,2,3,-1\n", "line 2: a nodule has a diameter of -1"),
        (head + "1.3.6.1,nan,2,3,4\n", "not finite"),
        (head, "no rows"),
    ):
        (tmp_path / "annotations.csv").write_text(text)
        with pytest.raises(DataError, match=error):
            read_annotations(tmp_path / "annotations.csv")
    (tmp_path / "candidates.csv").write_text("seriesuid,coordX,coordY,coordZ,class\n1,1,2,3,2\n")
    with pytest.raises(DataError, match="class is 2"):
        read_candidates(tmp_path / "candidates.csv")
    (tmp_path / "candidates.csv").unlink()
    # RAS coordinates where LUNA16 has LPS land outside the scan.
    (tmp_path / "annotations.csv").write_text(f"{head}1.3.6.1,48,-49,-188,8\n")
    with pytest.raises(DataError, match=r"line 2: its centre .* outside"):
        write_cohort(tmp_path, luna, store_of(luna), tmp_path / "out")
    (tmp_path / "annotations.csv").write_text(f"{head}9.9,48,-49,-188,8\n")
    with pytest.raises(DataError, match="none of its 1 series is in"):
        write_cohort(tmp_path, luna, store_of(luna), tmp_path / "out")
    with pytest.raises(ConfigError, match="test=fold1"):
        write_cohort(luna, luna, store_of(luna), tmp_path / "out", splits={"test": "fold1"})


def test_lung_masks_of_the_challenge_become_masks_of_the_series(luna: Path, tmp_path: Path) -> None:
    """Labels 3 and 4 of seg-lungs-LUNA16, in the same world; one that shows no lung is named."""
    for uid, turned in (("1.3.6.1", False), ("1.3.6.2", True)):
        write_lungs(tmp_path / "tables" / FOLDER / f"{uid}.mhd", turned=turned)
    shutil.copy(luna / "annotations.csv", tmp_path / "tables")
    told = write_cohort(tmp_path / "tables", luna, store_of(luna), tmp_path / "out")
    assert "lungs: 2 series with a mask of the lungs" in told[1]
    names = entries_of(luna)
    for uid in ("1.3.6.1", "1.3.6.2"):
        inside = read_mask(tmp_path / "out" / "lungs" / f"{names[uid]}.nii.gz")
        world = inside.world(np.argwhere(inside.voxels > 0))
        assert np.abs(world[:, 0] - 43).min() > 0.99  # nothing of the trachea, in the middle
        assert (np.sign(world[:, 0] - 43) > 0).mean() == pytest.approx(0.5, abs=0.1)
        low, high = world.min(0), world.max(0)
        assert (low < [43, -49, -188]).all()
        assert (high > [43, -49, -188]).all()
    (tmp_path / "tables" / FOLDER / "1.3.6.2.mhd").unlink()
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkUInt8), str(tmp_path / "tables" / FOLDER / "1.3.6.2.mhd"))
    with pytest.raises(DataError, match=r"1\.3\.6\.2\.mhd: no lung in it"):
        write_cohort(tmp_path / "tables", luna, store_of(luna), tmp_path / "out")

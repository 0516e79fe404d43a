from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmct.data.mask_files import mask_on_grid, match_masks, read_mask
from fmct.errors import DataError
from fmct.store.ingest import IngestConfig, ingest
from fmct.store.reader import Store
from fmct.volume import Volume
from tests.publish.tiny import body, write_nifti


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of two scans, ingested as scans/A/ct.nii.gz and scans/B/ct.nii.gz."""
    root = tmp_path_factory.mktemp("masks")
    for number, name in enumerate("AB"):
        write_nifti(root / "scans" / name / "ct.nii.gz", body(number))
    ingest([root / "scans"], root / "store", config=IngestConfig(workers=1, patient_regex="scans/([AB])/"))
    return Store.open(root / "store")


def write_mask(path: Path, voxels: np.ndarray | None = None) -> Path:
    scan = body()
    inside = np.zeros(scan.shape, np.int16) if voxels is None else voxels
    if voxels is None:
        inside[10:14, 12:18, 9:20] = 1
    return write_nifti(path, Volume(inside, scan.affine))


def places(store: Store, found: dict[str, Path]) -> dict[str, str]:
    """Return {A or B: mask's path below its folder's parent}."""
    rows = (store.path.parent / "store.sources.csv").read_text().splitlines()[1:]
    names = {row.split(",")[0]: "A" if "/A/" in row else "B" for row in rows}
    return {names[key]: "/".join(path.parts[-2:]) for key, path in found.items()}


def test_masks_are_found_by_id_or_patient(store: Store, tmp_path: Path) -> None:
    first, second = store.entries
    write_mask(tmp_path / f"{first.id}.nii.gz")
    write_mask(tmp_path / f"{second.patient}_lesion.nii.gz")
    found = match_masks(store, tmp_path)
    assert found == {
        first.id: tmp_path / f"{first.id}.nii.gz",
        second.id: tmp_path / f"{second.patient}_lesion.nii.gz",
    }


def test_masks_are_found_by_the_layout_of_the_scans(store: Store, tmp_path: Path) -> None:
    write_mask(tmp_path / "A" / "ct_gtv.nii.gz")
    write_mask(tmp_path / "A" / "pet_suv.nii.gz")
    write_mask(tmp_path / "B" / "ct.nii.gz")
    write_mask(tmp_path / "C" / "ct_gtv.nii.gz")
    assert places(store, match_masks(store, tmp_path)) == {"A": "A/ct_gtv.nii.gz", "B": "B/ct.nii.gz"}


def test_masks_beside_the_scans_are_not_the_scans(store: Store) -> None:
    scans = store.path.parent / "scans"
    mask = write_mask(scans / "A" / "ct_gtv.nii.gz")
    try:
        assert places(store, match_masks(store, scans)) == {"A": "A/ct_gtv.nii.gz"}
    finally:
        mask.unlink()


def test_a_table_says_which_mask_is_whose(store: Store, tmp_path: Path) -> None:
    write_mask(tmp_path / "one.nii.gz")
    table = tmp_path / "table.csv"
    table.write_text(f"id,mask\n{store.entries[1].id},one.nii.gz\nunknown,two.nii.gz\n")
    assert match_masks(store, tmp_path, table=table) == {store.entries[1].id: tmp_path / "one.nii.gz"}
    table.write_text("file,mask\nA/ct.nii.gz,one.nii.gz\n")
    assert places(store, match_masks(store, tmp_path, table=table)) == {"A": f"{tmp_path.name}/one.nii.gz"}
    table.write_text("file,mask\nA/ct.nii.gz,absent.nii.gz\n")
    with pytest.raises(DataError, match="line 2: no mask at"):
        match_masks(store, tmp_path, table=table)
    table.write_text("name,mask\nA,one.nii.gz\n")
    with pytest.raises(DataError, match="column mask and one of id"):
        match_masks(store, tmp_path, table=table)


def test_doubt_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        match_masks(store, tmp_path / "absent")
    with pytest.raises(DataError, match="none of its 0 files"):
        match_masks(store, tmp_path)
    write_mask(tmp_path / "A" / "ct_gtv.nii.gz")
    write_mask(tmp_path / "A" / "ct_edema.nii.gz")
    with pytest.raises(DataError, match="would get two masks"):
        match_masks(store, tmp_path)


def test_a_scan_is_not_a_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a mask"):
        read_mask(write_nifti(tmp_path / "scan.nii.gz", body()))
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(DataError, match="not readable as a mask"):
        read_mask(tmp_path / "broken.nii.gz")


def test_a_mask_lands_where_it_lies_in_the_world(tmp_path: Path) -> None:
    """A ball in world coordinates, drawn on an oblique fine grid, covers the same ball on a coarse canonical grid."""
    centre, radius = np.array([12.0, -30.0, 44.0]), 17.0
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.8, -0.9, 1.5])
    affine[:3, 3] = centre - affine[:3, :3] @ np.array([35.0, 33.0, 18.0])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (72, 70, 36)), indexing="ij"), -1)
    ball = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - centre, axis=-1) < radius
    nib.save(nib.Nifti1Image(ball.astype(np.uint8) * 3, affine), tmp_path / "ball.nii.gz")
    grid = np.array([[0, 0, -3.0, 60], [0, -3.0, 0, 15], [3.0, 0, 0, 5], [0, 0, 0, 1]])
    share = mask_on_grid(read_mask(tmp_path / "ball.nii.gz"), (30, 34, 33), grid)
    places = (
        np.stack(np.meshgrid(*(np.arange(n) for n in share.shape), indexing="ij"), -1) @ grid[:3, :3].T + grid[:3, 3]
    )
    distance = np.linalg.norm(places - centre, axis=-1)
    assert share[distance < radius - 4].min() == pytest.approx(1, abs=1e-6)
    assert share[distance > radius + 4].max() == 0
    assert share.sum() * 27 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)
    assert (share[..., None] * places).sum((0, 1, 2)) / share.sum() == pytest.approx(centre, abs=0.1)

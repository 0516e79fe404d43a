"""Which scans stand for head and chest."""

import dataclasses

import numpy as np
import pytest

from fmct.bench.workbench import QUICK, Workbench, recipe_config, write_nifti
from fmct.errors import ConfigError, DataError
from fmct.io import read_volume
from fmct.phantoms import body as phantom

SIZES = dataclasses.replace(QUICK, grids={part: ((24, 32, 32), (8.0, 8.0, 8.0)) for part in ("head", "chest")})


def said(_: str) -> None:
    """Print nothing."""


def scan(path, seed, slices=24):
    path.parent.mkdir(exist_ok=True)
    write_nifti(path, phantom.body(seed, (slices, 40, 40), (6.0, 6.0, 6.0)))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_written_is_read(tmp_path, name):
    volume = phantom.body(3, (20, 30, 25), (4.0, 5.0, 6.0))
    write_nifti(tmp_path / name, volume)
    read = read_volume(tmp_path / name)
    assert np.array_equal(read.voxels, volume.voxels)
    assert np.allclose(read.affine, volume.affine, atol=1e-4)


def test_names_choose_the_scans(tmp_path):
    for seed, name in enumerate(("abdomen.nii.gz", "my_CHEST_2.nii.gz", "headneck.nii.gz")):
        scan(tmp_path / "scans" / name, seed, slices=20 + seed)
    (tmp_path / "scans" / "head.nii.gz").write_bytes(b"no scan")
    bench = Workbench(tmp_path, SIZES, data=str(tmp_path / "scans"), say=said)
    assert (bench.volume("chest").shape[0], bench.volume("head").shape[0]) == (21, 22)
    assert bench.describe("head") == "real, 22 × 40 × 40 voxels of 6.00 × 6.00 × 6.00 mm (z, y, x)"
    with bench.store() as store:
        assert [entry.shape[0] for entry in store.entries] == [22, 21]
        assert bench.entry_of(store, "chest").shape[0] == 21


def test_one_scan_stands_for_both(tmp_path):
    scan(tmp_path / "scans" / "x.nii", 1)
    bench = Workbench(tmp_path, SIZES, data=str(tmp_path / "scans" / "x.nii"), say=said)
    with bench.store() as store:
        assert len(store.entries) == 1
        assert bench.entry_of(store, "head") is bench.entry_of(store, "chest")


def test_data_without_a_scan_is_a_mistake(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "notes.txt").write_text("no scan")
    with pytest.raises(DataError, match="holds one, found none"):
        Workbench(tmp_path, SIZES, data=str(tmp_path / "scans"), say=said).volume("head")


def test_phantoms_where_no_data_is_given(tmp_path):
    bench = Workbench(tmp_path, SIZES, say=said)
    assert bench.volume("head").shape == (24, 32, 32)
    assert bench.volume("head") is bench.volume("head")
    assert bench.describe("chest").startswith("phantom")


def test_recipes_are_read_as_pretrain_reads_them():
    recipe, config = recipe_config("pretrain/vit_small", ["store=S", "batch_size=4"])
    assert isinstance(config, recipe.Config)
    assert (config.store, config.batch_size, config.encoder.size) == ("S", 4, "small")
    with pytest.raises(ConfigError, match="batch_sise"):
        recipe_config("pretrain/vit_small", ["batch_sise=4"])

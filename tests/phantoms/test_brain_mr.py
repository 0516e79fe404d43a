"""The SYNTHETIC brain: what it says of its lesions is what is drawn, and veins are there to be mistaken for them."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from fmct.errors import ConfigError, DataError
from fmct.phantoms.brain_cohort import write_brain_cohort
from fmct.phantoms.brain_mr import brain_phantom
from fmct.table_files import read_rows

GRID = {"shape": (40, 48, 40), "spacing_mm": (2.4, 2.4, 2.4)}


def test_lesions_are_as_many_as_asked_dark_and_inside_the_brain() -> None:
    phantom = brain_phantom(1, lesions=4, **GRID)  # type: ignore[arg-type]
    inside = phantom.lesions.voxels > 0
    assert ndimage.label(inside, np.ones((3, 3, 3)))[1] == len(phantom.diameters_mm) == 4  # type: ignore[misc]
    assert all(2 <= d <= 10 for d in phantom.diameters_mm)
    assert phantom.brain.voxels[inside].all()
    image, brain = phantom.image.voxels, phantom.brain.voxels > 0
    veins = (phantom.veins.voxels > 0) & ~inside
    tissue = np.median(image[brain])
    assert np.median(image[inside]) < 0.7 * tissue
    assert np.median(image[veins]) < 0.7 * tissue  # the mimic
    assert veins.sum() > inside.sum()
    assert (phantom.image.modality, image.dtype, image.min() >= 0) == ("MR", np.float32, True)


def test_bright_lesions_are_those_of_a_signed_map() -> None:
    dark, bright = (brain_phantom(1, lesions=4, sign=s, **GRID) for s in ("dark", "bright"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(dark.lesions.voxels, bright.lesions.voxels)
    values, inside = bright.image.voxels, bright.lesions.voxels > 0
    assert values[inside].mean() > 100 > values[bright.brain.voxels > 0].mean()
    assert (values < 0).mean() > 0.05
    assert not values[bright.brain.voxels == 0].any()
    with pytest.raises(ConfigError, match="dark or bright"):
        brain_phantom(1, sign="grey")


def test_a_seed_is_a_brain() -> None:
    one, same, other = (brain_phantom(n, lesions=2, **GRID) for n in (7, 7, 8))  # type: ignore[arg-type]
    np.testing.assert_array_equal(one.image.voxels, same.image.voxels)
    assert not np.array_equal(one.brain.voxels, other.brain.voxels)
    assert not brain_phantom(7, lesions=0, **GRID).lesions.voxels.any()  # type: ignore[arg-type]


def test_a_cohort_lies_as_real_ones_do(tmp_path: Path) -> None:
    cohort = write_brain_cohort(tmp_path / "c", patients=4, free_share=0.25, test_share=0.5, shape=(20, 24, 20),
                                spacing_mm=(4.8, 4.8, 4.8))  # fmt: skip
    labels = read_rows(cohort.labels)
    assert sum(row["microbleed"] == "0" for row in labels) >= 1
    for row in labels:
        assert (cohort.scans / row["series"]).is_file()
        name = row["series"].replace(".nii.gz", "")
        assert (cohort.masks / f"{name}_microbleed.nii.gz").is_file()
        assert (cohort.brains / f"{name}_brain.nii.gz").is_file()
    splits = [row["split"] for row in read_rows(cohort.splits)]
    assert sorted(splits) == ["test", "test", "train", "validation"]
    assert "SYNTHETIC" in (cohort.folder / "README.md").read_text(encoding="utf-8")
    with pytest.raises(DataError, match="not empty"):
        write_brain_cohort(tmp_path / "c", patients=1)
